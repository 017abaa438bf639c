// AdamW in host memory, in one pass over it: the interface of the library, plain C.
//
// All pointers are to host memory. Nothing is allocated, nothing is kept between calls.
// What is computed is defined by bigft/optim/reference.py, bit for bit.
#pragma once
#include <cstdint>

#define BIGFT_API __attribute__((visibility("default")))

extern "C" {

enum BigftWeights {
  BIGFT_WEIGHTS_FP32 = 0,   // fp32 numbers; a bf16 copy is written where `copy` is not null
  BIGFT_WEIGHTS_SPLIT_16 = 1,  // bf16 numbers, and the 16 bits that make them fp32
  BIGFT_WEIGHTS_SPLIT_8 = 2,   // bf16 numbers, and 8 further bits
};

enum BigftGradients { BIGFT_GRADIENTS_FP32 = 0, BIGFT_GRADIENTS_BF16 = 1 };

// Instruction sets, the better the larger.
enum BigftIsa { BIGFT_SCALAR = 1, BIGFT_NEON = 2, BIGFT_AVX2 = 3, BIGFT_AVX512 = 4 };

// A contiguous part of one parameter.
struct BigftPart {
  int64_t size;         // elements
  int64_t first_block;  // blocks of all parts before this one
  void *weights;        // fp32, or bf16
  void *rest;           // int16 or int8; null for fp32 weights
  uint16_t *copy;       // bf16 copy of fp32 weights, or null
  const void *gradients;
  void *moment1;        // codes, or fp32 numbers where `scale1` is null
  void *moment2;
  float *scale1;        // one per block, or null
  float *scale2;
  int32_t phase;        // elements of its first block that lie before this part, below 256
  int32_t group;        // index into the groups
};

struct BigftGroup {
  float beta1;
  float beta2;
  float one_minus_beta1;
  float one_minus_beta2;
  float epsilon;
  float negative_step;  // -lr / (1 - beta1**t)
  float decay;          // 1 - lr * weight_decay
  float inverse_root;   // 1 / sqrt(1 - beta2**t)
};

// An 8-bit code; bigft/optim/code8.py says what its members mean.
struct BigftCode {
  float table[256];
  float threshold[9];
  float slope[9];
  int32_t shift;
  int32_t zero;
};

// Takes one step over all parts. Gradients are multiplied by `scale` first; those that are not
// finite then, or whose squares are not, count as 0, and their number is returned. `isa` 0 chooses;
// `threads` 0 leaves it to OpenMP. The numbers depend on neither. Returns -1 where there is no such
// instruction set.
BIGFT_API int64_t bigft_adamw_step(const BigftPart *parts, int64_t count, const BigftGroup *groups,
                                   const BigftCode *with_sign, const BigftCode *without_sign,
                                   int32_t weights, int32_t gradients, float scale,
                                   int32_t threads, int32_t isa);

// The best instruction set that both this machine and this build have.
BIGFT_API int32_t bigft_adamw_isa(void);

// Raised when the meaning of an argument changes.
BIGFT_API int32_t bigft_adamw_version(void);
}
