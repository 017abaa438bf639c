// NEON of 64-bit ARM.
#include "common.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace {

using Table = PlainTable;

inline void decode(const uint8_t *codes, const Table &table, float scale, int size, float *out) {
  for (int j = 0; j < size; ++j) out[j] = table.code.table[codes[j]] * scale;
}

struct Lanes {
  static constexpr int N = 4;
  using F = float32x4_t;
  static F load(const float *p) { return vld1q_f32(p); }
  static void store(float *p, F x) { vst1q_f32(p, x); }
  static F all(float x) { return vdupq_n_f32(x); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F root(F a) { return vsqrtq_f32(a); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F abs(F a) { return vabsq_f32(a); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F keep_usable(F x, int &dropped) {
    const uint32x4_t ok = vcleq_f32(abs(x), all(bigft::kLargest));
    dropped += 4 - int(vaddvq_u32(vshrq_n_u32(ok, 31)));
    return vreinterpretq_f32_u32(vandq_u32(ok, vreinterpretq_u32_f32(x)));
  }
  static float reduce_max(F a) { return vmaxvq_f32(a); }
  static uint32x4_t high(const uint16_t *p) { return vshll_n_u16(vld1_u16(p), 16); }
  static F load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(high(p)); }
  static uint16x4_t round(uint32x4_t bits) {
    return vshrn_n_u32(vaddq_u32(bits, vdupq_n_u32(0x8000)), 16);
  }
  static void store_bf16(uint16_t *p, F x) { vst1_u16(p, round(vreinterpretq_u32_f32(x))); }
  static F join(const uint16_t *p, int32x4_t rest) {
    return vreinterpretq_f32_u32(vaddq_u32(high(p), vreinterpretq_u32_s32(rest)));
  }
  static F load_split(const uint16_t *p, const int16_t *r) { return join(p, vmovl_s16(vld1_s16(r))); }
  static void store_split(uint16_t *p, int16_t *r, F x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    vst1_u16(p, round(bits));
    vst1_s16(r, vreinterpret_s16_u16(vmovn_u32(bits)));
  }
  static F load_split(const uint16_t *p, const int8_t *r) {
    const int32_t rest[4] = {r[0] * 256, r[1] * 256, r[2] * 256, r[3] * 256};
    return join(p, vld1q_s32(rest));
  }
  static void store_split(uint16_t *p, int8_t *r, F x) {
    const uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x80));
    vst1_u16(p, round(bits));
    store_byte(reinterpret_cast<uint8_t *>(r), vshrq_n_u32(bits, 8));
  }
  static void store_byte(uint8_t *p, uint32x4_t x) {
    uint32_t found[4];
    vst1q_u32(found, x);
    for (int j = 0; j < 4; ++j) p[j] = uint8_t(found[j]);
  }
};

// Four numbers of a table of eight.
inline float32x4_t pick(const float *table, uint32x4_t g) {
  const uint8x16x2_t bytes = {vreinterpretq_u8_f32(vld1q_f32(table)),
                              vreinterpretq_u8_f32(vld1q_f32(table + 4))};
  const uint32x4_t at = vmlaq_n_u32(vdupq_n_u32(0x03020100), g, 0x04040404);
  return vreinterpretq_f32_u8(vqtbl2q_u8(bytes, vreinterpretq_u8_u32(at)));
}

// The positions of four numbers that are not negative, but for zero: that is what group 1 makes of
// all that is below it, and is left out at the end.
template <bool with_sign>
inline int32x4_t find_position(float32x4_t x, const BigftCode &code) {
  uint32x4_t g = vdupq_n_u32(0);
  // Each comparison that holds is all ones: -1.
  for (int i = 2; i < 9; ++i) g = vsubq_u32(g, vcgeq_f32(x, vdupq_n_f32(code.threshold[i])));
  const float32x4_t line = vfmaq_f32(vdupq_n_f32(bigft::kIntercept), x, pick(code.slope + 1, g));
  uint32x4_t k = vreinterpretq_u32_f32(vminq_f32(line, vdupq_n_f32(bigft::kBelowTwo)));
  k = vorrq_u32(vandq_u32(k, vdupq_n_u32(0x7fffff)), vdupq_n_u32(0x800000));
  // A shift to the left by a negative number is one to the right.
  k = vshlq_u32(k, vreinterpretq_s32_u32(vsubq_u32(g, vdupq_n_u32(uint32_t(code.shift - 1)))));
  if (!with_sign) k = vsubq_u32(k, vdupq_n_u32(1));
  return vreinterpretq_s32_u32(vandq_u32(k, vcgeq_f32(x, vdupq_n_f32(code.threshold[1]))));
}

template <bool with_sign>
inline void encode(const float *in, const Table &table, float inverse, int size, uint8_t *out) {
  int j = 0;
  for (; j + 4 <= size; j += 4) {
    const float32x4_t x = vmulq_n_f32(vld1q_f32(in + j), inverse);
    int32x4_t k = find_position<with_sign>(with_sign ? vabsq_f32(x) : x, table.code);
    if (with_sign) {
      const int32x4_t sign = vshrq_n_s32(vreinterpretq_s32_f32(x), 31);
      k = vaddq_s32(vsubq_s32(veorq_s32(k, sign), sign), vdupq_n_s32(table.code.zero));
      k = vmaxq_s32(k, vdupq_n_s32(0));
    }
    Lanes::store_byte(out + j, vreinterpretq_u32_s32(k));
  }
  for (; j < size; ++j) out[j] = find_code<with_sign>(in[j] * inverse, table.code);
}

}  // namespace

#include "step.inl"

bigft::Step bigft::step_neon() { return run; }

#else

bigft::Step bigft::step_neon() { return nullptr; }

#endif
