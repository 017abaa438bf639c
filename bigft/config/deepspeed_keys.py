"""The DeepSpeed configuration keys of DeepSpeed 0.19.8, with the type of each value: data only.

DeepSpeed ignores unknown keys at the top level and in half of its sections, so a misspelt key
trains something else without a word; this table is what makes that an error. It is generated with
`tests/unit/config/deepspeed_introspection.py` and held equal to the installed DeepSpeed by
`tests/unit/config/test_deepspeed_keys.py`. A key that a newer DeepSpeed adds is found in its
source text and let through (see `bigft.config.deepspeed_check`), so the table never blocks.

Notation: a dict is a section; `?` allows null; `a|b` is a choice; `any` is not checked.
"""

from typing import Any

_OFFLOAD_PARAM = {
    "device": "none|cpu|nvme",
    "nvme_path": "str?",
    "buffer_count": "int",
    "buffer_size": "int",
    "max_in_cpu": "int",
    "pin_memory": "bool",
}

_OFFLOAD_OPTIMIZER = {
    "device": "none|cpu|nvme",
    "nvme_path": "str?",
    "buffer_count": "int",
    "pin_memory": "bool",
    "pipeline_read": "bool",
    "pipeline_write": "bool",
    "fast_init": "bool",
    "ratio": "float",
    "super_offload": "bool",
    "cpuadam_cores_perc": "float",
}

_ZENFLOW = {
    "topk_ratio": "float",
    "select_strategy": "str",
    "select_interval": "any",
    "update_interval": "any",
    "overlap_step": "bool",
    "offload": "bool",
    "auto_ratio": "float",
    "full_warm_up_rounds": "int",
    "pt_reserved_cores_perc": "float",
    "steps_per_epoch": "int?",
}

_ZERO = {
    "stage": "int",
    "contiguous_gradients": "bool",
    "reduce_scatter": "bool",
    "reduce_bucket_size": "int",
    "use_multi_rank_bucket_allreduce": "bool",
    "allgather_partitions": "bool",
    "allgather_bucket_size": "int",
    "overlap_comm": "bool?",
    "compute_grad_norm": "bool",
    "load_from_fp32_weights": "bool",
    "elastic_checkpoint": "bool",
    "offload_param": _OFFLOAD_PARAM,
    "offload_optimizer": _OFFLOAD_OPTIMIZER,
    "zenflow": _ZENFLOW,
    "sub_group_size": "int",
    "stage3_prefetch_bucket_size": "int",
    "stage3_param_persistence_threshold": "int",
    "stage3_model_persistence_threshold": "int",
    "stage3_max_live_parameters": "int",
    "stage3_max_reuse_distance": "int",
    "stage3_gather_16bit_weights_on_model_save": "bool",
    "stage3_module_granularity_threshold": "int",
    "stage3_use_all_reduce_for_fetch_params": "bool",
    "stage3_allgather_sequential": "bool",
    "ignore_unused_parameters": "bool",
    "legacy_stage1": "bool",
    "round_robin_gradients": "bool",
    "parameter_alignment": "bool",
    "zero_hpz_partition_size": "int",
    "zero_quantized_weights": "bool",
    "zero_quantized_nontrainable_weights": "bool",
    "zero_quantized_gradients": "bool",
    "memory_efficient_linear": "bool",
    "pipeline_loading_checkpoint": "bool",
    "override_module_apply": "bool",
    "log_trace_cache_warnings": "bool",
    "enable_sanity_checks": "bool",
    "save_muon_momentum_buffer_in_memory": "bool",
    "leaf_module": {"classes": "list", "names": "list", "name_suffixes": "list"},
}

_BF16 = {
    "enabled": "bool",
    "immediate_grad_update": "bool",
    "check_grad_overflow": "bool",
    "bf16_master_weights_and_grads": "bool",
    "bf16_optimizer_states": "bool",
}

_FP16 = {
    "enabled": "bool",
    "auto_cast": "bool",
    "loss_scale": "float",
    "initial_scale_power": "int",
    "loss_scale_window": "int",
    "hysteresis": "int",
    "consecutive_hysteresis": "bool",
    "min_loss_scale": "int",
    "fp16_master_weights_and_grads": "bool",
}

_COMPILE = {
    "deepcompile": "bool",
    "autoep_non_moe": "bool",
    "free_activation": "bool",
    "free_activation_threshold": "int",
    "offload_activation": "bool",
    "offload_activation_pin_memory": "bool",
    "offload_opt_states": "bool",
    "double_buffer": "bool",
    "symmetric_memory": "bool",
    "debug_log": "bool",
    "offload_parameters": "bool",
    "sync_before_reduce": "bool",
    "sync_after_reduce": "bool",
    "sync_before_allgather": "bool",
    "sync_after_allgather": "bool",
    "keep_int_input_tensors": "bool",
    "keep_all_input_tensors": "bool",
    "passes": "list?",
}

_COMET = {
    "enabled": "bool",
    "samples_log_interval": "int",
    "project": "str?",
    "workspace": "str?",
    "api_key": "str?",
    "experiment_name": "str?",
    "experiment_key": "str?",
    "online": "bool?",
    "mode": "str?",
}

_ACTIVATION_CHECKPOINTING = {
    "partition_activations": "bool",
    "number_checkpoints": "int?",
    "contiguous_memory_optimization": "bool",
    "cpu_checkpointing": "bool",
    "profile": "bool",
    "synchronize_checkpoint_boundary": "bool",
}

_FLOPS_PROFILER = {
    "enabled": "bool",
    "recompute_fwd_factor": "float",
    "profile_step": "int",
    "module_depth": "int",
    "top_modules": "int",
    "detailed": "bool",
    "output_file": "str?",
}

_AIO = {
    "block_size": "int",
    "queue_depth": "int",
    "intra_op_parallelism": "int",
    "single_submit": "bool",
    "overlap_events": "bool",
    "use_gds": "bool",
}

_CHECKPOINT = {
    "tag_validation": "str",
    "checkpoint_serialization": "bool",
    "load_universal": "bool",
    "use_node_local_storage": "bool",
    "parallel_write": {"pipeline_stage": "bool"},
    "writer": "any",
}

_HYBRID_ENGINE = {
    "enabled": "bool",
    "max_out_tokens": "int",
    "inference_tp_size": "int",
    "release_inference_cache": "bool",
    "pin_parameters": "bool",
    "tp_gather_partition_size": "int",
    "enable_cuda_graph": "bool",
}

_WEIGHT_QUANTIZATION = {
    "enabled": "bool",
    "num_bits": "int",
    "q_type": "asymmetric|symmetric",
    "q_groups": "int",
    "quantized_initialization": "dict",
    "post_init_quant": "dict",
}

KEYS: dict[str, Any] = {
    "train_batch_size": "int",
    "train_micro_batch_size_per_gpu": "int",
    "gradient_accumulation_steps": "int",
    "managed_gradient_accumulation": "bool",
    "gradient_clipping": "float",
    "prescale_gradients": "bool",
    "gradient_predivide_factor": "float",
    "gradient_allreduce_op": "str",
    "communication_data_type": "fp16|bf16|fp32|?",
    "seq_parallel_communication_data_type": "fp16|bf16|fp32|?",
    "zero_optimization": _ZERO,
    "zero_allow_untested_optimizer": "bool",
    "zero_force_ds_cpu_optimizer": "bool",
    "bf16": _BF16,
    "fp16": _FP16,
    "torch_autocast": {"enabled": "bool", "dtype": "str", "lower_precision_safe_modules": "list"},
    "data_types": {
        "grad_accum_dtype": "bf16|fp16|fp32|?",
        "param_dtype": "bf16|fp16|fp32|?",
        "buffer_dtype": "bf16|fp16|fp32|?",
        "keep_in_fp32_modules": "any",
    },
    "optimizer": {"type": "str", "params": "dict", "legacy_fusion": "bool"},
    "scheduler": {"type": "str", "params": "dict"},
    "aio": _AIO,
    "checkpoint": _CHECKPOINT,
    "compile": _COMPILE,
    "activation_checkpointing": _ACTIVATION_CHECKPOINTING,
    "flops_profiler": _FLOPS_PROFILER,
    "comms_logger": {
        "enabled": "bool",
        "prof_all": "bool",
        "prof_ops": "list",
        "verbose": "bool",
        "debug": "bool",
    },
    "timers": {"throughput": {"enabled": "bool", "synchronized": "bool"}},
    "tensorboard": {"enabled": "bool", "output_path": "str", "job_name": "str"},
    "wandb": {"enabled": "bool", "group": "str?", "team": "str?", "project": "str"},
    "csv_monitor": {"enabled": "bool", "output_path": "str", "job_name": "str"},
    "comet": _COMET,
    "steps_per_print": "int?",
    "wall_clock_breakdown": "bool",
    "memory_breakdown": "bool",
    "dump_state": "bool",
    "disable_allgather": "bool",
    "disable_python_gc": "bool",
    "dataloader_drop_last": "bool",
    "vocabulary_size": "int?",
    "log_level": "str?",
    "use_data_before_expert_parallelism": "bool",
    "hybrid_engine": _HYBRID_ENGINE,
    "weight_quantization": _WEIGHT_QUANTIZATION,
    "datastates_ckpt": "any",
    # Refused by bigft as a whole (see `deepspeed_check.REFUSED`), so their inside is not listed.
    "autotuning": "any",
    "data_efficiency": "any",
    "expert_parallel": "any",
    "pipeline": "any",
    "tensor_parallel": "any",
    "sequence_parallel_size": "int",
    "data_parallel_size": "int",
}
"""Key -> type or section."""

ADAM_PARAMS = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "bias_correction",
    "amsgrad",
    "torch_adam",
    "adam_w_mode",
    "fp32_optimizer_states",
    "foreach",
    "set_grad_none",
)
"""What `optimizer.params` may hold for Adam and AdamW."""

WARMUP_PARAMS = {
    "WarmupLR": ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"),
    "WarmupDecayLR": (
        "total_num_steps",
        "warmup_min_lr",
        "warmup_max_lr",
        "warmup_num_steps",
        "warmup_type",
    ),
    "WarmupCosineLR": (
        "total_num_steps",
        "warmup_min_ratio",
        "warmup_num_steps",
        "cos_min_ratio",
        "warmup_type",
    ),
}
"""What `scheduler.params` may hold, for the schedules that bigft can fill in."""

ZERO_SYNONYMS = {
    "prefetch_bucket_size": "stage3_prefetch_bucket_size",
    "param_persistence_threshold": "stage3_param_persistence_threshold",
    "model_persistence_threshold": "stage3_model_persistence_threshold",
    "max_live_parameters": "stage3_max_live_parameters",
    "max_reuse_distance": "stage3_max_reuse_distance",
    "gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "module_granularity_threshold": "stage3_module_granularity_threshold",
    "use_all_reduce_for_fetch_params": "stage3_use_all_reduce_for_fetch_params",
    "allgather_sequential": "stage3_allgather_sequential",
}
"""Second names that DeepSpeed takes inside `zero_optimization`; bigft writes the first one."""

REMOVED = {
    "nebula": "Nebula was removed from DeepSpeed; bigft writes checkpoints itself. Drop the block",
    "compression_training": "removed from DeepSpeed, without a replacement. Drop the block",
    "amp": 'Apex AMP was removed from DeepSpeed; use "bf16": {"enabled": true}',
    "quantize_training": "removed from DeepSpeed, without a replacement. Drop the block",
    "sparse_gradients": "removed from DeepSpeed; nothing replaces it for dense embeddings. Drop it",
    "eigenvalue": "removed from DeepSpeed, without a replacement. Drop the block",
    "sparse_attention": "removed from DeepSpeed; choose an attention with --model.attention",
    "elasticity": "removed from DeepSpeed; write train_micro_batch_size_per_gpu and "
    "gradient_accumulation_steps instead",
    "graph_harvesting": "removed from DeepSpeed, without a replacement. Drop it",
    "curriculum_learning": "removed from DeepSpeed; bigft owns the order of the data. Drop it",
    "progressive_layer_drop": "removed from DeepSpeed, without a replacement. Drop the block",
    "zero_optimization.mics_shard_size": "MiCS was removed from DeepSpeed; "
    "zero_hpz_partition_size keeps a second copy of the shards inside each host",
    "zero_optimization.mics_hierarchical_params_gather": "MiCS was removed from DeepSpeed. Drop it",
    "zero_optimization.zeropp_loco_param": "LoCo was removed from DeepSpeed; "
    "zero_quantized_gradients works without it. Drop it",
    "bfloat16": 'an old name that DeepSpeed ignores beside "bf16"; write "bf16"',
    "allgather_size": "an old name; write zero_optimization.allgather_bucket_size",
    "zero_optimization.cpu_offload": 'deprecated; write "offload_optimizer": {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": 'deprecated; write "offload_param": {"device": "cpu"}',
    "zero_optimization.cpu_offload_params": 'an old name; write "offload_param": {"device": "cpu"}',
    "zero_optimization.cpu_offload_use_pin_memory": "deprecated; write pin_memory inside "
    "offload_param and offload_optimizer",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "deprecated; bigft exports the "
    "model itself from the shards. Drop it",
    "optimizer.params.max_grad_norm": "DeepSpeed ignores it there; write gradient_clipping",
}
"""Keys that DeepSpeed no longer takes, or takes under another name -> the answer."""
