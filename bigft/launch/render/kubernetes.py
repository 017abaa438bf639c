"""A JobSet for Kubernetes: one pod per host, which starts the ranks of its host itself.

JobSet is what Kubeflow's Trainer is built on, and it restarts all pods when one has failed, which a
run with collectives needs. `torchrun` in the pods would return 1 for everything; the few lines of
shell here return what the ranks return, and JobSet can tell a stop from a mistake.
"""

import yaml

from bigft.launch.render.start import (
    NOTICE_SECONDS,
    PORT,
    Start,
    fill,
    find_equal_slots,
)

_NAME = "bigft"
_FOLDER = "/workspace"

START_RANKS = r"""# Starts the ranks of this pod, passes a stop on to them, returns the worst code:
# a mistake before what other ranks say of the end of the one that has met it.
set -u
pids=()
is_stopped=false
trap 'is_stopped=true; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for ((rank = 0; rank < LOCAL_SIZE; rank++)); do
    ((number = JOB_COMPLETION_INDEX * LOCAL_SIZE + rank))
    RANK=$number LOCAL_RANK=$rank "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
    wait "$pid"
    one=$?
    # What a signal has interrupted is waited for again.
    while [ "$is_stopped" = true ]; do
        is_stopped=false
        wait "$pid"
        again=$?
        [ "$again" -eq 127 ] || one=$again
    done
    case $code:$one in
    [2-57]:*) ;;
    *:[2-57]) code=$one ;;
    *) [ "$one" -le "$code" ] || code=$one ;;
    esac
done
exit "$code"
"""

_MANIFEST = r"""# Made by `bigft launch --render kubernetes`; needs JobSet in the cluster.
#
#   kubectl create secret generic @NAME@ --from-env-file=FILE      (NAME=VALUE lines; see env below)
#   kubectl apply -f kubernetes.yaml
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: @NAME@
spec:
  network:
    # Names of pods before they are ready: they are ready when they have met.
    enableDNSHostnames: true
    publishNotReadyAddresses: true
    subdomain: @NAME@
  failurePolicy:
    # All pods start again, from the newest checkpoint: after a stop (75) as after a crash.
    maxRestarts: 20
    rules:
      # A mistake in settings, data, plan, checkpoint or training is the same the next time.
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          parallelism: @NODES@
          completions: @NODES@
          # The run is one thing: a pod that ends ends it, and JobSet starts all of them again.
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  operator: In
                  values: [2, 3, 4, 5, 7]
          template:
            spec:
              restartPolicy: Never
              # For a step and a save, after SIGTERM.
              terminationGracePeriodSeconds: @NOTICE@
              containers:
                - name: ranks
                  image: @IMAGE@
                  workingDir: @FOLDER@
                  env:
                    - {name: WORLD_SIZE, value: "@WORLD_SIZE@"}
                    - {name: LOCAL_SIZE, value: "@RANKS@"}
                    - {name: MASTER_ADDR, value: "@NAME@-hosts-0-0.@NAME@"}
                    - {name: MASTER_PORT, value: "@PORT@"}
@SECRETS@
@RESOURCES@
                  command:
                    - bash
                    - -c
                    - |
@SCRIPT@
                    - ranks
@WORDS@
                  volumeMounts:
                    - {name: shared-memory, mountPath: /dev/shm}
                    - {name: work, mountPath: @FOLDER@}
              volumes:
                # Ranks of a host, and NCCL, exchange data there; the default is 64 MB.
                - name: shared-memory
                  emptyDir: {medium: Memory, sizeLimit: 16Gi}
                - name: work
                  persistentVolumeClaim: {claimName: @CLAIM@}
"""


def render_kubernetes(start: Start) -> str:
    """Return a manifest; words are given to the container as they are, and no shell reads them.

    Raises:
        ConfigError: The hosts have different numbers of ranks.
    """
    ranks = find_equal_slots(start, "kubernetes")
    nodes = len(start.slots)
    secret = "secretKeyRef: {{name: {name}, key: {key}}}"
    secrets = [
        f"- {{name: {key}, valueFrom: {{{secret.format(name=_NAME, key=key)}}}}}"
        for key in map(_quote, start.env)
    ]
    resources = ["resources:", f'  limits: {{nvidia.com/gpu: "{ranks}"}}']
    return fill(
        _MANIFEST,
        name=_NAME,
        nodes=nodes,
        notice=NOTICE_SECONDS,
        image=_quote(start.image),
        folder=_quote(start.folder or _FOLDER),
        world_size=nodes * ranks,
        ranks=ranks,
        port=PORT,
        secrets=_indent(secrets, 20),
        resources=_indent(resources if start.on_gpus else [], 18),
        script=_indent(START_RANKS.splitlines(), 22),
        words=_indent([f"- {_quote_word(word)}" for word in start.program], 20),
        claim=_quote(start.claim),
    )


def _quote(text: str) -> str:
    quoted: str = yaml.dump(text, default_style='"', width=1 << 30, allow_unicode=False)
    return quoted.rstrip("\n")


def _quote_word(word: str) -> str:
    # Kubernetes reads $(NAME) in commands, and $$ as one $.
    return _quote(word.replace("$", "$$"))


def _indent(lines: list[str], width: int) -> str:
    return "\n".join(" " * width + line if line else "" for line in lines)
