// What every instruction set shares.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "adamw.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bigft {

using Step = int64_t (*)(const BigftPart *, int64_t, const BigftGroup *, const BigftCode &,
                         const BigftCode &, int, int, float, int);

// The step for an instruction set that this build has, else null.
Step step_scalar();
Step step_neon();
Step step_avx2();
Step step_avx512();

// Unnamed: these files are compiled for different machines, and nothing of them may be shared.
namespace {

// The largest number whose square is one, too: larger gradients are no use.
constexpr float kLargest = 1.8446743e19f;

constexpr float kIntercept = 8.0f / 9.0f;
constexpr float kBelowTwo = 0x1.fffffep0f;

inline int64_t count_blocks(int64_t size, int64_t phase) { return (size + phase + 255) / 256; }

// The part that a block belongs to.
inline int64_t find_part(const BigftPart *parts, int64_t count, int64_t block) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (parts[middle].first_block <= block) low = middle; else high = middle;
  }
  return low;
}

// Subnormal numbers are kept and rounding is to nearest, whatever the caller's thread has set.
class PlainArithmetic {
 public:
#if defined(__x86_64__)
  PlainArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~PlainArithmetic() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  PlainArithmetic() {
    uint64_t plain = 0;
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(plain));
  }
  ~PlainArithmetic() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

}  // namespace
}  // namespace bigft

namespace {

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The nearest code of one number.
template <bool with_sign>
inline uint8_t find_code(float x, const BigftCode &code) {
  const float a = with_sign ? std::fabs(x) : x;
  int g = 0;
  while (g < 8 && a >= code.threshold[g + 1]) ++g;
  const float line = std::fma(a, code.slope[g], bigft::kIntercept);
  const uint32_t bits = to_bits(std::min(line, bigft::kBelowTwo));
  int k = int(((bits & 0x7fffffu) | 0x800000u) >> (code.shift - g));
  if (!with_sign) k -= 1;
  if (with_sign && std::signbit(x)) k = -k;
  return uint8_t(std::max(code.zero + k, 0));
}

// What most instruction sets need of a code: the code itself.
struct PlainTable {
  explicit PlainTable(const BigftCode &of) : code(of) {}
  const BigftCode &code;
};

}  // namespace
