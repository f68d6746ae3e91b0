#ifndef SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_ATTENTION_PANEL_H_
#define SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_ATTENTION_PANEL_H_
// The inner step of attention: fold one panel of at most 64 keys into the running softmax of some
// rows.
#include <cstddef>
#include <cstdint>

#include "sluice/runtime/kernels/common/panel.h"

namespace sluice::kernels {
// Logits are kept in units of log2: pack q with scale * kLog2E, biases too.
inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;
// Value widths are padded to a multiple of this with zeros.
inline constexpr int64_t kValuePad = 16;

struct AttentionPanel {
  // Key side, shared by all rows.
  const float* kt = nullptr;  // [d, 64] from PackKeyPanel
  const float* v = nullptr;   // [n, v_stride]
  int64_t v_stride = 0;
  int64_t n = 0;                // keys in the panel, 1..64
  const float* bias = nullptr;  // [64] added to the logits (log2 units), optional
  // Row side.
  const float* q = nullptr;         // [rows, d]
  int64_t rows = 0, d = 0, dv = 0;  // dv padded
  const uint64_t* mask = nullptr;   // [rows], bit j: row sees key j; null: every row sees all n
  // Biases of rows, optional: [rows / row_group, 64] in log2 units, added `slopes`[row % row_group]
  // times (null: once). Finite.
  const float* row_bias = nullptr;
  const float* slopes = nullptr;
  int64_t row_group = 1;
  float softcap = 0;  // > 0: logit = cap * tanh(logit / cap), natural units
  // Running state: max logit (log2 units, -inf when empty), sum of 2^(s - m), unnormalised output
  // [rows, dv].
  float* m = nullptr;
  float* l = nullptr;
  float* o = nullptr;
  float* scratch = nullptr;  // AttentionScratchFloats(rows)
};
inline constexpr int64_t kAttentionRowGroup = 48;
inline constexpr int64_t AttentionScratchFloats(int64_t rows) {
  return (rows < kAttentionRowGroup ? rows : kAttentionRowGroup) * kPanelKeys;
}

// kt [d, 64]: transposes n keys, zero beyond.
void PackKeyPanel(const PanelSource& keys, int64_t n, int64_t d, float* kt);
// v [n, dv_pad]: converts n value rows, zero columns beyond dv.
void PackValuePanel(const PanelSource& values, int64_t n, int64_t dv, int64_t dv_pad, float* v);
// Whether n value rows hold neither NaN nor infinity.
bool AllFinite(const PanelSource& values, int64_t n, int64_t dim);
// Returns the largest share of its new normaliser that any row gained (0 when no row saw a key). A
// row whose mask is empty is left bit for bit as it was. A NaN or infinity in q, a visible key or
// its value shows in the rows that see it, and in no other. O(rows * n * (d + dv)).
float AttendPanel(const AttentionPanel& p);
// The same step for a few rows, keys and values multiplied as they are read and never
// packed: reads p without kt and v. d and dv are multiples of kValuePad. Bits differ from
// AttendPanel's, and depend neither on the other rows nor on the keys' places. Up to kFewRows rows
// this is the faster way.
inline constexpr int64_t kFewRows = 16;
// The panel that comes after: its rows are asked for while this one's are multiplied. One head's
// rows lie apart in a cache of all heads, and listed ones anywhere, so that no processor asks for
// them by itself.
struct PanelAhead {
  PanelSource keys;
  PanelSource values;
  int64_t n = 0;  // 0: none
};
float AttendRows(const AttentionPanel& p, const PanelSource& keys, const PanelSource& values,
                 const PanelAhead& ahead = {});
// Second pass: probabilities of the panel given final m and l; prob [rows, prob_stride]. Masked
// keys give 0.
void PanelProbabilities(const AttentionPanel& p, float* prob, int64_t prob_stride);

// The same step in bf16, for CPUs with instructions for it: q, k, v and the probabilities are
// rounded to bf16, sums stay fp32. `attend` reads p without kt, v and q. Its values must be finite
// where p has a mask (AllFinite): a hidden key weighs 0, and 0 times infinity would be NaN.
struct Bf16Attention {
  const char* name;
  int64_t (*packed_keys)(int64_t d);     // uint16 elements of a packed key panel
  int64_t (*packed_values)(int64_t dv);  // of a packed value panel
  int64_t (*packed_queries)(int64_t rows, int64_t d);
  int64_t (*scratch_floats)(int64_t rows, int64_t dv);
  void (*pack_queries)(const float* q, int64_t rows, int64_t d, uint16_t* out);
  void (*pack_keys)(const PanelSource&, int64_t n, int64_t d, uint16_t* out);  // bf16 sources only
  void (*pack_values)(const PanelSource&, int64_t n, int64_t dv,
                      uint16_t* out);  // bf16 sources only
  float (*attend)(const AttentionPanel& p, const uint16_t* q, const uint16_t* k, const uint16_t* v);
};
enum class Bf16Unit : uint8_t {
  kBest,    // AMX, else AVX512-BF16 where it outruns fp32 multiply-adds, else none
  kAmx,     // matrix tiles
  kAvx512,  // vector dot products (AVX512-BF16)
  kNone,    // convert to fp32
};
// Null where the CPU, the operating system or the build lacks the unit.
const Bf16Attention* GetBf16Attention(Bf16Unit unit = Bf16Unit::kBest);

namespace bf16_internal {
const Bf16Attention* Amx();
const Bf16Attention* Avx512();
bool Avx512OutrunsFp32();
}  // namespace bf16_internal
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_ATTENTION_PANEL_H_
