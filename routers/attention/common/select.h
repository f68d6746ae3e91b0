#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_SELECT_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_SELECT_H_
// SELECT: from scores to units, under a budget and with guards.
#include "sluice/api/config.h"
#include "sluice/routers/attention/common/plan.h"
#include "sluice/runtime/kernels/top_k/top_k.h"
#include "sluice/runtime/kernels/top_p/top_p.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// How many blocks a row keeps, and which it must.
struct BlockBudget {
  int64_t k = 32;            // blocks kept; 0: use p
  double p = 0;              // share of the score mass kept (scores must not be negative)
  double tau = -1;           // with k = p = 0: keep scores above it
  int64_t sink = 1;          // forced: the first blocks
  int64_t local = 2;         // and the last ones, up to the tile's own
  bool count_forced = true;  // whether forced blocks use up k or p

  template <class V>
  void VisitFields(V&& v) {
    v("k", k, Range<int64_t>{0, kEverything}, "blocks kept per list row; 0: use p");
    v("p", p, Range<double>{0, 1}, "share of the block probability kept when k = 0");
    v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always kept");
    v("local", local, Range<int64_t>{1, 1 << 20}, "last blocks always kept, own block included");
    v("force_counts_in_budget", count_forced, Range<bool>{false, true},
      "whether forced blocks use up k or p");
  }
  absl::Status Check() const {
    if (k > 0 || p > 0) return absl::OkStatus();
    return absl::InvalidArgumentError("k and p are both 0; one must be positive");
  }
  bool Forces(int64_t block, int64_t own) const { return block < sink || block > own - local; }
};

inline Scratch<std::byte> AddSelectScratch(RouterPlan& plan, int64_t units) {
  const int64_t rule =
      std::max<int64_t>(kernels::TopKScratchBytes(units), kernels::TopPScratchBytes(units));
  return plan.AddScratch<std::byte>(rule + (units + 16) * int64_t{sizeof(uint32_t)});
}

// The ids [count] of the best units of a budget, ascending, forced ones left out: score [n] is
// overwritten. Ties go to the lowest unit; NaN is never selected.
inline int64_t PickBlocks(const BlockBudget& budget, float* score, int64_t n, int64_t own,
                          uint32_t* ids, void* scratch) {
  int64_t forced = 0;
  double total = 0;
  double forced_mass = 0;
  for (int64_t b = 0; b < n; ++b) {
    if (score[b] > 0) total += score[b];
    if (!budget.Forces(b, own)) continue;
    ++forced;
    if (score[b] > 0) forced_mass += score[b];
    score[b] = -HUGE_VALF;
  }
  if (budget.k > 0) {
    const int64_t k = budget.count_forced ? std::max<int64_t>(0, budget.k - forced) : budget.k;
    return kernels::TopK(score, n, std::min(k, n), ids, scratch).count;
  }
  if (budget.p > 0) {
    const double others = total - forced_mass;
    double p = budget.p;
    if (budget.count_forced && p < 1) p = others > 0 ? (p * total - forced_mass) / others : 0;
    return kernels::TopP(score, n, static_cast<float>(p), ids, scratch);
  }
  int64_t picked = 0;
  for (int64_t b = 0; b < n; ++b) {
    if (score[b] > budget.tau) ids[picked++] = static_cast<uint32_t>(b);
  }
  return picked;
}

// Writes the entries of one list row, ascending, and returns how many. score [visible] is
// overwritten; blocks [own, visible) overlap the tile.
inline int64_t SelectBlocks(const BlockBudget& budget, float* score, int64_t visible, int64_t own,
                            std::byte* scratch, PlanEntry* out) {
  uint32_t* ids = reinterpret_cast<uint32_t*>(scratch);
  const int64_t picked =
      PickBlocks(budget, score, visible, own, ids, ids + CeilDiv(visible, 16) * 16);
  int64_t n = 0;
  int64_t next = 0;
  for (int64_t b = 0; b < visible; ++b) {
    const bool forced = budget.Forces(b, own);
    const bool chosen = next < picked && ids[next] == b;
    next += chosen;
    if (forced || chosen) out[n++] = ExactEntry(b, 1, MaskClass::kCausal, forced);
  }
  return n;
}

// What each of a tile's queries, at most 64, selects by itself, as one list row: the union of their
// blocks, ascending, each with a mask of the queries that want it. score [queries, stride] of the
// blocks up to each query's own is overwritten; wanted: scratch of a mask a block. Returns how many
// entries.
inline int64_t SelectUnion(const BlockBudget& budget, int64_t block, const TileQueries& q,
                           float* score, int64_t stride, uint64_t* wanted, std::byte* scratch,
                           PlanEntry* out, uint64_t* mask) {
  const int64_t blocks = q.last / block + 1;
  uint32_t* ids = reinterpret_cast<uint32_t*>(scratch);
  void* rest = ids + CeilDiv(blocks, 16) * 16;
  std::fill(wanted, wanted + blocks, uint64_t{0});
  for (int64_t i = 0; i < q.count(); ++i) {
    const int64_t own = (q.first + i) / block;
    const uint64_t bit = uint64_t{1} << i;
    const int64_t picked = PickBlocks(budget, score + i * stride, own + 1, own, ids, rest);
    for (int64_t j = 0; j < picked; ++j) wanted[ids[j]] |= bit;
    for (int64_t b = 0; b <= own; ++b) wanted[b] |= budget.Forces(b, own) ? bit : 0;
  }
  int64_t n = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (wanted[b] == 0) continue;
    mask[n] = wanted[b];
    out[n++] = ExactEntry(b, 1, MaskClass::kCausal, budget.Forces(b, blocks - 1));
  }
  return n;
}
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_SELECT_H_
