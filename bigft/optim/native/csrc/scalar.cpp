// One number after the other: any machine.
#include "common.h"

namespace {

using Table = PlainTable;

inline void decode(const uint8_t *codes, const Table &table, float scale, int size, float *out) {
  for (int j = 0; j < size; ++j) out[j] = table.code.table[codes[j]] * scale;
}

template <bool with_sign>
inline void encode(const float *in, const Table &table, float inverse, int size, uint8_t *out) {
  for (int j = 0; j < size; ++j) out[j] = find_code<with_sign>(in[j] * inverse, table.code);
}

struct Single;
using Lanes = Single;

}  // namespace

#include "step.inl"

bigft::Step bigft::step_scalar() { return run; }
