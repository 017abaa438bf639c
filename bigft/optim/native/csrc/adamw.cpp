// The choice of an instruction set, when the library is called: one build runs on every machine.
#include "common.h"

namespace {

bigft::Step find_step(int isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vbmi");
#else
  const bool has_avx2 = false, has_avx512 = false;
#endif
  switch (isa) {
    case BIGFT_SCALAR: return bigft::step_scalar();
    case BIGFT_NEON: return bigft::step_neon();
    case BIGFT_AVX2: return has_avx2 ? bigft::step_avx2() : nullptr;
    case BIGFT_AVX512: return has_avx512 ? bigft::step_avx512() : nullptr;
    default: return nullptr;
  }
}

}  // namespace

extern "C" int32_t bigft_adamw_isa(void) {
  int isa = BIGFT_AVX512;
  while (find_step(isa) == nullptr) --isa;
  return isa;
}

extern "C" int64_t bigft_adamw_step(const BigftPart *parts, int64_t count,
                                    const BigftGroup *groups, const BigftCode *with_sign,
                                    const BigftCode *without_sign, int32_t weights,
                                    int32_t gradients, float scale, int32_t threads, int32_t isa) {
  const bigft::Step step = find_step(isa ? isa : bigft_adamw_isa());
  if (step == nullptr) return -1;
  if (count == 0) return 0;
  return step(parts, count, groups, *with_sign, *without_sign, weights, gradients, scale,
              threads > 0 ? threads : omp_get_max_threads());
}

extern "C" int32_t bigft_adamw_version(void) { return 1; }
