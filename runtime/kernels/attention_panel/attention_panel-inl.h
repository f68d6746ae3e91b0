// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_INL_H_
#undef SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_INL_H_
#endif
#include "hwy/contrib/math/math-inl.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"
#include "sluice/runtime/kernels/common/panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
using sluice::kernels::AttentionPanel;

// Whether logits need more than a mask.
HWY_INLINE bool HasExtra(const AttentionPanel& p) {
  return p.bias != nullptr || p.row_bias != nullptr || p.softcap > 0;
}

// Applies the soft cap, adds biases and applies the mask to one row of logits.
HWY_INLINE void FinishLogits(const AttentionPanel& p, int64_t r, uint64_t visible,
                             float* HWY_RESTRICT s) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  const float* row_bias =
      p.row_bias != nullptr ? p.row_bias + r / p.row_group * kPanelKeys : nullptr;
  const VF slope = hn::Set(d, p.slopes != nullptr ? p.slopes[r % p.row_group] : 1.0f);
  for (int64_t j = 0; j < kPanelKeys; j += N) {
    VF x = hn::LoadU(d, s + j);
    if (p.softcap > 0) {
      const float to = sluice::kernels::kLn2 / p.softcap,
                  back = p.softcap * sluice::kernels::kLog2E;
      x = hn::Mul(hn::Tanh(d, hn::Mul(x, hn::Set(d, to))), hn::Set(d, back));
    }
    if (p.bias != nullptr) x = hn::Add(x, hn::LoadU(d, p.bias + j));
    if (row_bias != nullptr) x = hn::MulAdd(slope, hn::LoadU(d, row_bias + j), x);
    if (visible != ~uint64_t{0})
      x = hn::IfThenElse(LanesMask(visible, j), x, hn::Set(d, -HUGE_VALF));
    hn::StoreU(x, d, s + j);
  }
}

// Online softmax of one row; s becomes the probabilities relative to the new max. Returns the row's
// gain.
HWY_INLINE float SoftmaxStep(const AttentionPanel& p, int64_t r, float* HWY_RESTRICT s) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF top = hn::LoadU(d, s);
  for (int64_t j = N; j < kPanelKeys; j += N) top = hn::Max(top, hn::LoadU(d, s + j));
  const float row_max = hn::GetLane(hn::MaxOfLanes(d, top));
  const float before = p.m[r];
  float m = before;
  if (row_max > before) {
    m = row_max;
    if (p.l[r] != 0) {  // an empty state has nothing to rescale
      const float shrink = hn::GetLane(Exp2(hn::Set(d, before - m)));
      p.l[r] *= shrink;
      const VF scale = hn::Set(d, shrink);
      float* o = p.o + r * p.dv;
      for (int64_t j = 0; j < p.dv; j += N)
        hn::StoreU(hn::Mul(hn::LoadU(d, o + j), scale), d, o + j);
    }
    p.m[r] = m;
  }
  // Where all that was seen weighs nothing, -inf minus -inf would be no number.
  const VF vm = hn::Set(d, m == -HUGE_VALF ? 0.0f : m);
  VF sum = hn::Zero(d);
  for (int64_t j = 0; j < kPanelKeys; j += N) {
    const VF e = Exp2(hn::Sub(hn::LoadU(d, s + j), vm));
    hn::StoreU(e, d, s + j);
    sum = hn::Add(sum, e);
  }
  const float gain = hn::GetLane(hn::SumOfLanes(d, sum));
  p.l[r] += gain;
  return p.l[r] != 0 ? gain / p.l[r] : 0.0f;
}

// From a row's products to its probabilities; zeros where it sees no key. Returns the row's gain.
HWY_INLINE float FinishRow(const AttentionPanel& p, int64_t r, uint64_t all, bool extra,
                           float* HWY_RESTRICT s) {
  const uint64_t visible = p.mask != nullptr ? p.mask[r] & all : all;
  if (visible == 0) {
    std::memset(s, 0, kPanelKeys * sizeof(float));
    return 0;
  }
  if (extra || visible != ~uint64_t{0}) FinishLogits(p, r, visible, s);
  return SoftmaxStep(p, r, s);
}

// Bit j: value row j of the panel holds a NaN or an infinity. x - x is 0 for every other number.
HWY_INLINE uint64_t NonFiniteRows(const float* HWY_RESTRICT v, int64_t stride, int64_t n,
                                  int64_t dv) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  uint64_t bad = 0;
  for (int64_t j = 0; j < n; ++j) {
    VF sum = hn::Zero(d);
    for (int64_t x = 0; x < dv; x += N) {
      const VF y = hn::LoadU(d, v + j * stride + x);
      sum = hn::Add(sum, hn::Sub(y, y));
    }
    const float total = hn::GetLane(hn::SumOfLanes(d, sum));
    bad |= static_cast<uint64_t>(!(total == 0)) << j;
  }
  return bad;
}

// o += prob . v where value rows `bad` must not reach the rows that do not see them: 0 * inf is no
// 0.
HWY_INLINE void AccumulateAround(const AttentionPanel& p, int64_t r0, int64_t rows, uint64_t bad) {
  for (int64_t j = 0; j < p.n;) {
    if ((bad >> j) & 1) {
      for (int64_t r = 0; r < rows; ++r) {
        if (((p.mask[r0 + r] >> j) & 1) == 0) continue;
        const float weight = p.scratch[r * kPanelKeys + j];
        for (int64_t x = 0; x < p.dv; ++x)
          p.o[(r0 + r) * p.dv + x] += weight * p.v[j * p.v_stride + x];
      }
      ++j;
      continue;
    }
    int64_t end = j;
    while (end < p.n && ((bad >> end) & 1) == 0) ++end;
    PanelGemm<true>(rows, p.scratch + j, kPanelKeys, p.v + j * p.v_stride, p.v_stride, end - j,
                    p.dv, p.o + r0 * p.dv, p.dv);
    j = end;
  }
}

// The keys of a panel, [first, end), that some of its rows see.
struct SeenKeys {
  int64_t first = 0;
  int64_t end = 0;
};
HWY_INLINE SeenKeys SeenBy(const AttentionPanel& p, int64_t r0, int64_t rows, uint64_t all) {
  if (p.mask == nullptr) return {0, p.n};
  uint64_t any = 0;
  for (int64_t r = 0; r < rows; ++r) any |= p.mask[r0 + r];
  any &= all;
  if (any == 0) return {0, 0};
  return {static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero64(any)),
          kPanelKeys - static_cast<int64_t>(hwy::Num0BitsAboveMS1Bit_Nonzero64(any))};
}

// Products of rows with the columns of a panel, NV vectors of them.
template <int NV>
HWY_INLINE void ColumnLogits(int64_t rows, const float* HWY_RESTRICT q, int64_t d,
                             const float* HWY_RESTRICT kt, float* HWY_RESTRICT s) {
  for (int64_t r = 0; r < rows; r += 6)
    MicroRows<NV, false>(HWY_MIN(rows - r, int64_t{6}), q + r * d, d, kt, kPanelKeys, d,
                         s + r * kPanelKeys, kPanelKeys);
}
// s [rows, 64]: products with the keys that are seen; what stands at others is to be masked. A
// triangle's panel has a half that nobody sees.
HWY_INLINE void PanelLogits(const AttentionPanel& p, int64_t r0, int64_t rows, SeenKeys seen,
                            float* HWY_RESTRICT s) {
  const float* q = p.q + r0 * p.d;
#if HWY_TARGET <= HWY_AVX3
  constexpr int64_t kLanes = 16;
  const int64_t first = seen.first / kLanes * kLanes;
  switch ((seen.end - first + kLanes - 1) / kLanes) {
    case 1:
      return ColumnLogits<1>(rows, q, p.d, p.kt + first, s + first);
    case 2:
      return ColumnLogits<2>(rows, q, p.d, p.kt + first, s + first);
    case 3:
      return ColumnLogits<3>(rows, q, p.d, p.kt + first, s + first);
    default:
      break;
  }
#else
  (void)seen;
#endif
  PanelGemm<false>(rows, q, p.d, p.kt, kPanelKeys, p.d, kPanelKeys, s, kPanelKeys);
}

HWY_MAYBE_UNUSED static HWY_NOINLINE float AttendPanel(const AttentionPanel& p) {
  const uint64_t all = p.n == kPanelKeys ? ~uint64_t{0} : (uint64_t{1} << p.n) - 1;
  const bool extra = HasExtra(p);
  // Only a hidden key's value can leak.
  const uint64_t bad = p.mask != nullptr ? NonFiniteRows(p.v, p.v_stride, p.n, p.dv) : 0;
  float gain = 0;
  for (int64_t r0 = 0; r0 < p.rows; r0 += sluice::kernels::kAttentionRowGroup) {
    const int64_t rows = HWY_MIN(p.rows - r0, sluice::kernels::kAttentionRowGroup);
    const SeenKeys seen = SeenBy(p, r0, rows, all);
    if (seen.end == 0) continue;
    PanelLogits(p, r0, rows, seen, p.scratch);
    for (int64_t r = 0; r < rows; ++r) {
      const float row_gain = FinishRow(p, r0 + r, all, extra, p.scratch + r * kPanelKeys);
      if (row_gain > gain) gain = row_gain;
    }
    if (bad != 0) {
      AccumulateAround(p, r0, rows, bad);
    } else {
      PanelGemm<true>(rows, p.scratch + seen.first, kPanelKeys, p.v + seen.first * p.v_stride,
                      p.v_stride, seen.end - seen.first, p.dv, p.o + r0 * p.dv, p.dv);
    }
  }
  return gain;
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void PanelProbabilities(const AttentionPanel& p, float* prob,
                                                             int64_t stride) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  const uint64_t all = p.n == kPanelKeys ? ~uint64_t{0} : (uint64_t{1} << p.n) - 1;
  HWY_ALIGN float s[kPanelKeys];
  for (int64_t r = 0; r < p.rows; ++r) {
    const uint64_t visible = p.mask != nullptr ? p.mask[r] & all : all;
    if (visible == 0 || p.l[r] == 0) {
      for (int64_t j = 0; j < p.n; ++j) prob[r * stride + j] = 0;
      continue;
    }
    PanelGemm<false>(1, p.q + r * p.d, p.d, p.kt, kPanelKeys, p.d, kPanelKeys, s, kPanelKeys);
    FinishLogits(p, r, visible, s);
    const VF vm = hn::Set(d, p.m[r]), scale = hn::Set(d, 1.0f / p.l[r]);
    for (int64_t j = 0; j < kPanelKeys; j += N) {
      hn::StoreU(hn::Mul(Exp2(hn::Sub(hn::LoadU(d, s + j), vm)), scale), d, s + j);
    }
    for (int64_t j = 0; j < p.n; ++j) prob[r * stride + j] = s[j];
  }
}

HWY_MAYBE_UNUSED static HWY_NOINLINE bool AllFinite(const PanelSource& s, int64_t n, int64_t dim) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  HWY_ALIGN float row[kPanelKeys];
  VF sum = hn::Zero(d);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t at = 0; at < dim; at += kPanelKeys) {
      const int64_t some = HWY_MIN(dim - at, kPanelKeys);
      const auto* from =
          static_cast<const uint8_t*>(SourceRow(s, j)) + sluice::DTypeBytes(s.dtype, at);
      ToF32(s.dtype, from, some, row);
      for (int64_t x = some; x < kPanelKeys; ++x) row[x] = 0;
      for (int64_t x = 0; x < kPanelKeys; x += N) {
        const VF y = hn::LoadU(d, row + x);
        sum = hn::Add(sum, hn::Sub(y, y));
      }
    }
  }
  return hn::GetLane(hn::SumOfLanes(d, sum)) == 0;
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void PackKeyPanel(const PanelSource& s, int64_t n, int64_t d,
                                                       float* kt) {
  PackKeys(s, n, d, kt);
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void PackValuePanel(const PanelSource& s, int64_t n,
                                                         int64_t dv, int64_t dv_pad, float* v) {
  for (int64_t j = 0; j < n; ++j) {
    ToF32(s.dtype, SourceRow(s, j), dv, v + j * dv_pad);
    for (int64_t i = dv; i < dv_pad; ++i) v[j * dv_pad + i] = 0;
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
