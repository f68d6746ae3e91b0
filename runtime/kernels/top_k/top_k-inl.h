// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_TOP_K_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_TOP_K_INL_H_
#undef SLUICE_RUNTIME_KERNELS_TOP_K_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_TOP_K_INL_H_
#endif
#include <cmath>
#include <cstring>
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
// Order-preserving: a < b as floats iff KeyOf(a) < KeyOf(b); 0 for NaN and -inf, which are never
// selected.
HWY_INLINE uint32_t KeyOf(float x) {
  if (!(x > -HUGE_VALF)) return 0;
  const uint32_t u = sluice::F32ToBits(x + 0.0f);  // -0 becomes +0
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
// The same of a vector of scores above -inf.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<DF>> KeysOfVector(VF x) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  const auto u = hn::BitCast(du, hn::Add(x, hn::Zero(d)));
  const auto sign = hn::BitCast(du, hn::ShiftRight<31>(hn::BitCast(di, u)));
  return hn::Xor(u, hn::Or(sign, hn::Set(du, 0x80000000u)));
}
// Keys of selectable scores x[ids[i]].
HWY_INLINE void KeysOf(const float* HWY_RESTRICT x, const uint32_t* HWY_RESTRICT ids, int64_t n,
                       uint32_t* HWY_RESTRICT keys) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  const int64_t N = hn::Lanes(d);
  int64_t i = 0;
  for (; i + N <= n; i += N) {
    const VF v = hn::GatherIndex(d, x, hn::BitCast(di, hn::LoadU(du, ids + i)));
    hn::StoreU(KeysOfVector(v), du, keys + i);
  }
  for (; i < n; ++i) keys[i] = KeyOf(x[ids[i]]);
}
struct Cut {
  uint32_t key;   // everything above is in
  uint32_t ties;  // and this many of those equal to it, lowest index first
};
// The cut of the k largest of keys[0, n), 0 < k <= n. `spare` holds n, `bins` 1024.
HWY_INLINE Cut RadixCut(const uint32_t* HWY_RESTRICT keys, int64_t n, int64_t k,
                        uint32_t* HWY_RESTRICT spare, uint32_t* HWY_RESTRICT bins) {
  for (;;) {
    uint32_t lo = keys[0], hi = keys[0];
    for (int64_t i = 1; i < n; ++i) {
      lo = HWY_MIN(lo, keys[i]);
      hi = HWY_MAX(hi, keys[i]);
    }
    if (lo == hi) return {lo, static_cast<uint32_t>(k)};
    uint32_t shift = 0;
    while (((hi - lo) >> shift) >= 1024) ++shift;
    std::memset(bins, 0, 1024 * sizeof(uint32_t));
    for (int64_t i = 0; i < n; ++i) ++bins[(keys[i] - lo) >> shift];
    int64_t b = (hi - lo) >> shift;
    while (bins[b] < k) k -= bins[b--];
    if (shift == 0) return {lo + static_cast<uint32_t>(b), static_cast<uint32_t>(k)};
    // The bin's keys, compacted; a vector is read whole before its survivors are written at or
    // before it.
    const uint32_t base = lo + (static_cast<uint32_t>(b) << shift), width = uint32_t{1} << shift;
    const hn::RebindToUnsigned<DF> du;
    const int64_t N = hn::Lanes(du);
    int64_t kept = 0, i = 0;
    for (; i + N <= n; i += N) {
      const auto v = hn::LoadU(du, keys + i);
      const auto in = hn::Lt(hn::Sub(v, hn::Set(du, base)), hn::Set(du, width));
      hn::StoreU(hn::Compress(v, in), du, spare + kept);
      kept += hn::CountTrue(du, in);
    }
    for (; i < n; ++i) {
      const uint32_t key = keys[i];
      spare[kept] = key;
      kept += key - base < width;
    }
    keys = spare;  // further rounds compact in place, which reads ahead of its writes
    n = kept;
  }
}
// Indices of x >= tau (kAll: of x > -inf), and the number of NaN.
template <bool kAll>
HWY_INLINE int64_t Survivors(const float* HWY_RESTRICT x, int64_t n, float tau,
                             uint32_t* HWY_RESTRICT ids, uint32_t* nans) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const int64_t N = hn::Lanes(d);
  const VF t = hn::Set(d, tau);
  const auto passes = [&](VF v) HWY_ATTR { return kAll ? hn::Gt(v, t) : hn::Ge(v, t); };
  int64_t count = 0, nan = 0, i = 0;
  auto id = hn::Iota(du, 0);
  const auto step = hn::Set(du, static_cast<uint32_t>(N));
  for (; i + 4 * N <= n; i += 4 * N) {
    const VF v0 = hn::LoadU(d, x + i), v1 = hn::LoadU(d, x + i + N);
    const VF v2 = hn::LoadU(d, x + i + 2 * N), v3 = hn::LoadU(d, x + i + 3 * N);
    // A sum is NaN when a term is; the rare false alarm (inf - inf) only costs the exact count.
    const VF sum = hn::Add(hn::Add(v0, v1), hn::Add(v2, v3));
    if (HWY_UNLIKELY(!hn::AllFalse(d, hn::IsNaN(sum)))) {
      for (int64_t j = 0; j < 4 * N; ++j) nan += x[i + j] != x[i + j];
    }
    const auto one = [&](VF v) HWY_ATTR {
      const auto in = passes(v);
      hn::StoreU(hn::Compress(id, hn::RebindMask(du, in)), du, ids + count);
      count += hn::CountTrue(d, in);
      id = hn::Add(id, step);
    };
    one(v0);
    one(v1);
    one(v2);
    one(v3);
  }
  for (; i < n; ++i) {
    nan += x[i] != x[i];
    ids[count] = static_cast<uint32_t>(i);
    count += kAll ? x[i] > tau : x[i] >= tau;
  }
  *nans = static_cast<uint32_t>(nan);
  return count;
}
constexpr int64_t kFewScores = 256;

// Whole vectors of keys[0, n) that are at least `least`.
HWY_INLINE int64_t CountAtLeast(const uint32_t* HWY_RESTRICT keys, int64_t n, uint32_t least) {
  const hn::RebindToUnsigned<DF> du;
  const int64_t N = hn::Lanes(du);
  const auto bound = hn::Set(du, least - 1);  // keys looked for are positive
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += N)
    count += hn::CountTrue(du, hn::Gt(hn::LoadU(du, keys + i), bound));
  return count;
}
// Rows of a router have few scores: bins would be mostly empty, and walking them would take longer
// than everything else. Bisection instead, until a key parts k scores from the others. `keys`,
// `ids` hold n and a vector more. 0 < k, 0 < n <= kFewScores.
HWY_INLINE sluice::kernels::TopKCount TopKOfFew(const float* HWY_RESTRICT x, int64_t n, int64_t k,
                                                uint32_t* HWY_RESTRICT index,
                                                uint32_t* HWY_RESTRICT keys,
                                                uint32_t* HWY_RESTRICT ids) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const int64_t N = hn::Lanes(d);
  const VF never = hn::Set(d, -HUGE_VALF);
  int64_t nans = 0;
  int64_t padded = 0;
  for (; padded + N <= n; padded += N) {
    const VF v = hn::LoadU(d, x + padded);
    nans += hn::CountTrue(d, hn::IsNaN(v));
    const auto selectable = hn::RebindMask(du, hn::Gt(v, never));
    hn::StoreU(hn::IfThenElseZero(selectable, KeysOfVector(v)), du, keys + padded);
  }
  if (padded < n) {
    for (int64_t i = padded; i < padded + N; ++i) {
      keys[i] = i < n ? KeyOf(x[i]) : 0;
      nans += i < n && x[i] != x[i];
    }
    padded += N;
  }

  // Between `low`, which more than k keys reach, and `high`, which fewer do.
  uint32_t low = 1;
  uint32_t high = 0xFF800001u;  // above the key of +inf
  int64_t above = 0;            // keys that reach `high`
  const int64_t selectable = CountAtLeast(keys, padded, low);
  bool parted = selectable <= k;
  while (!parted && high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const int64_t count = CountAtLeast(keys, padded, middle);
    parted = count == k;
    const bool more = count >= k;
    low = more ? middle : low;
    high = more ? high : middle;
    above = more ? above : count;
  }

  int64_t out = 0;
  if (parted) {
    const auto bound = hn::Set(du, low - 1);
    auto id = hn::Iota(du, 0);
    for (int64_t i = 0; i < padded; i += N) {
      const auto in = hn::Gt(hn::LoadU(du, keys + i), bound);
      hn::StoreU(hn::Compress(id, in), du, ids + out);
      out += hn::CountTrue(du, in);
      id = hn::Add(id, hn::Set(du, static_cast<uint32_t>(N)));
    }
    std::memcpy(index, ids, out * sizeof(uint32_t));
  } else {
    int64_t ties = k - above;  // keys equal to `low` that are in: the first ones
    for (int64_t i = 0; i < n; ++i) {
      const bool tie = keys[i] == low;
      if (!(keys[i] > low) && !(tie && ties > 0)) continue;
      ties -= tie ? 1 : 0;
      index[out++] = static_cast<uint32_t>(i);
    }
  }
  return {static_cast<uint32_t>(out), static_cast<uint32_t>(nans)};
}
HWY_MAYBE_UNUSED static HWY_NOINLINE sluice::kernels::TopKCount TopK(const float* HWY_RESTRICT x,
                                                                     int64_t n, int64_t k,
                                                                     uint32_t* HWY_RESTRICT index,
                                                                     void* scratch) {
  uint32_t* bins = static_cast<uint32_t*>(scratch);
  uint32_t* keys = bins + 1024;
  uint32_t* ids = keys + n + 64;
  if (n == 0 || k == 0) {
    uint32_t nans = 0;
    for (int64_t i = 0; i < n; ++i) nans += x[i] != x[i];
    return {0, nans};
  }
  if (n <= kFewScores) return TopKOfFew(x, n, k, index, keys, ids);
  // A strided sample guesses a threshold that a little more than k scores pass; counting tells
  // whether it was right.
  float tau = -HUGE_VALF;
  constexpr int64_t kSample = 1024;
  if (n >= 4096 && k * 4 <= n) {
    const int64_t stride = n / kSample;
    for (int64_t i = 0; i < kSample; ++i) keys[i] = KeyOf(x[i * stride]);
    const int64_t expect = k * kSample / n;
    int64_t margin = 4;
    while (margin * margin < 9 * expect) ++margin;  // three standard deviations
    const uint32_t key =
        RadixCut(keys, kSample, HWY_MIN(expect + margin + 1, kSample), keys + kSample, bins).key;
    if (key != 0) tau = sluice::BitsToF32((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
  }
  uint32_t nans = 0;
  int64_t count = 0;
  for (;;) {
    count = tau == -HUGE_VALF ? Survivors<true>(x, n, tau, ids, &nans)
                              : Survivors<false>(x, n, tau, ids, &nans);
    if (count >= k || tau == -HUGE_VALF) break;
    tau = -HUGE_VALF;  // the guess was too high: take everything
  }
  if (count <= k) {
    std::memcpy(index, ids, count * sizeof(uint32_t));
    return {static_cast<uint32_t>(count), nans};
  }
  KeysOf(x, ids, count, keys);
  Cut cut;
  if (2 * count + 64 <= n) {
    cut = RadixCut(keys, count, k, keys + count, bins);
  } else {  // no room for a copy beside the keys: the index list is rebuilt afterwards from the cut
    uint32_t* spare = ids;
    cut = RadixCut(keys, count, k, spare, bins);
    int64_t out = 0;
    for (int64_t i = 0; i < n && out < k; ++i) {
      const uint32_t key = KeyOf(x[i]);
      if (key > cut.key || (key == cut.key && cut.ties > 0)) {
        cut.ties -= key == cut.key;
        index[out++] = static_cast<uint32_t>(i);
      }
    }
    return {static_cast<uint32_t>(k), nans};
  }
  const hn::RebindToUnsigned<DF> du;
  const int64_t N = hn::Lanes(du);
  int64_t out = 0, i = 0, ties = 0;
  for (int64_t j = 0; j < count; ++j) ties += keys[j] == cut.key;
  if (ties == cut.ties) {  // the usual case: every key equal to the cut is in
    for (; i + N <= count && out + N <= k; i += N) {
      const auto in =
          hn::Gt(hn::LoadU(du, keys + i), hn::Set(du, cut.key - 1));  // keys are positive
      hn::StoreU(hn::Compress(hn::LoadU(du, ids + i), in), du, index + out);
      out += hn::CountTrue(du, in);
    }
    cut.ties = 0;
    for (int64_t j = i; j < count; ++j) cut.ties += keys[j] == cut.key;
  }
  for (; i < count && out < k; ++i) {
    const bool tie = keys[i] == cut.key;
    if (!(keys[i] > cut.key) && !(tie && cut.ties > 0)) continue;
    cut.ties -= tie;
    index[out++] = ids[i];
  }
  return {static_cast<uint32_t>(k), nans};
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
