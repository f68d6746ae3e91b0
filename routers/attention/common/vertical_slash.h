#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_VERTICAL_SLASH_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_VERTICAL_SLASH_H_
// SCORE and SELECT of vertical lines and slashes: keys that all queries of a segment want, and
// distances at which they all look back, by what the segment's last queries say. FlexPrefill and
// MInference are made of them.
#include "sluice/routers/attention/common/plan.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/runs.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/kernels/top_k/top_k.h"
#include "sluice/runtime/kernels/top_p/top_p.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// Consecutive queries of a head that share what is found out; segments begin at a call's first
// query and hold whole tiles of kTile.
struct HeadSegment {
  int64_t head = 0;
  TileRows rows;
  WorkerScratch scratch;
  BranchWriter branch;

  // write(tile's rows, its queries, its entries) says how many entries the tile's list got; for the
  // tiles of `part`, rows of the segment.
  template <class Write>
  void ForEachTile(TileRows part, Write&& write) const {
    BranchWriter to = branch;
    for (int64_t tile = part.begin / kTile; tile * kTile < part.begin + part.count; ++tile) {
      const int64_t row = to.row_of(head, tile);
      to.set_count(row, write(RowsOf(to, tile), to.Queries(tile), to.entries(row)));
    }
  }
  void WriteGuards(const Guards& guards) const {
    ForEachTile(rows, [&](TileRows, const TileQueries& q, PlanEntry* entries) {
      return RunWriter(guards, q, entries).Finish();
    });
  }
  void WriteDense() const { WriteGuards({.sink = 0, .local = kEverything}); }
};

// Whether what is looked at fits into a segment.
inline absl::Status CheckSegment(int64_t segment, int64_t last, int64_t least_queries) {
  if (std::max(last, least_queries) <= segment) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("last=", last,
                                                 " and least_queries=", least_queries,
                                                 ", at most segment=", segment, " is allowed"));
}
// Room for what WriteSegments writes.
inline void AddSegmentBranch(RouterPlan& plan) {
  const AttentionShape& s = plan.shape;
  plan.layout.max_tile = kTile;
  plan.layout.AddBranch({.rows = s.heads * MaxTiles(s, kTile), .entry_slots = RunSlots(s)});
}
// Writes a plan of one branch, a list a query head and kTile queries: body(segment) in parallel for
// every head and segment of `length` queries.
template <class Body>
absl::Status WriteSegments(int64_t length, const RouterPlan& plan, const AttentionInputs& in,
                           const RunContext& ctx, PlanBuilder& out, Body&& body) {
  Begin(plan.shape, in, out);
  SLUICE_ASSIGN_OR_RETURN(const BranchWriter branch,
                          out.AddBranch({.scope = ListScope::kQueryHead, .tile = kTile}));
  const int64_t queries = branch.q_count();
  const int64_t segments = CeilDiv(queries, length);
  ctx.executor->ParallelFor(branch.num_lists() * segments, 1,
                            [&](int64_t begin, int64_t end, int w) {
                              for (int64_t i = begin; i < end; ++i) {
                                const int64_t first = i % segments * length;
                                const TileRows rows = {first, std::min(length, queries - first)};
                                body(HeadSegment{i / segments, rows, plan.Worker(ctx, w), branch});
                              }
                            });
  return absl::OkStatus();
}

// The lines that a segment keeps, ascending.
struct Lines {
  const uint32_t* columns = nullptr;  // keys
  int64_t num_columns = 0;
  const uint32_t* slashes = nullptr;  // segment's last position - distance
  int64_t num_slashes = 0;
  int64_t last = 0;  // position of the segment's last query

  // Writes a tile's row: of each slash the keys at its distance from any query of the tile.
  int64_t Write(const Guards& guards, const TileQueries& q, PlanEntry* out) const {
    RunWriter runs(guards, q, out);
    int64_t c = 0;
    for (int64_t s = 0; s < num_slashes; ++s) {
      const int64_t begin = int64_t{slashes[s]} - (last - q.first);
      for (; c < num_columns && columns[c] < begin; ++c) runs.Add(columns[c], columns[c] + 1);
      runs.Add(begin, begin + q.count());
    }
    for (; c < num_columns; ++c) runs.Add(columns[c], int64_t{columns[c]} + 1);
    return runs.Finish();
  }
};

// Probabilities of a segment's last queries, summed by key and by distance. O(rows * keys * width);
// 4 bytes of scratch for each row and key.
class LineSums {
 public:
  struct Layout {
    int64_t most = 0;  // rows that are looked at
    Scratch<float> queries, keys, prob, column, slash, gemm;
    Scratch<uint32_t> columns, slashes;
    Scratch<std::byte> select;
  };
  static Layout AddTo(RouterPlan& plan, int64_t rows) {
    const AttentionShape& s = plan.shape;
    Layout l;
    l.most = std::min(rows, s.max_queries);
    l.queries = plan.AddScratch<float>(l.most * s.head_dim);
    l.keys = plan.AddScratch<float>(kKeyBatch * s.head_dim);
    l.prob = plan.AddScratch<float>(l.most * s.max_kv);
    l.column = plan.AddScratch<float>(s.max_kv);
    l.slash = plan.AddScratch<float>(s.max_kv);
    l.gemm = AddGemmScratch(plan, s.head_dim);
    l.columns = plan.AddScratch<uint32_t>(s.max_kv);
    l.slashes = plan.AddScratch<uint32_t>(s.max_kv);
    l.select = plan.AddScratch<std::byte>(std::max<int64_t>(kernels::TopKScratchBytes(s.max_kv),
                                                            kernels::TopPScratchBytes(s.max_kv)));
    return l;
  }

  // Looks at the last rows of a segment. A query with a NaN among its logits has no say.
  LineSums(const Layout& layout, const AttentionInputs& in, const HeadSegment& s)
      : l_(layout), scratch_(s.scratch), keys_(in.q_begin + s.rows.begin + s.rows.count) {
    const int64_t n = std::min(l_.most, s.rows.count);
    rows_ = {s.rows.begin + s.rows.count - n, n};
    const int64_t kv = s.head / (in.q.heads / in.k.heads);
    ScaledQueries(in.q, rows_, s.head, in.scale, scratch_[l_.queries]);
    ScoreAllKeys(scratch_[l_.queries], n, in.k, kv, keys_, scratch_[l_.prob], scratch_[l_.keys],
                 scratch_[l_.gemm]);
    std::fill(column(), column() + keys_, 0.0f);
    std::fill(slash(), slash() + keys_, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
      float* p = scratch_[l_.prob] + i * keys_;
      const int64_t seen = keys_ - (n - 1 - i);
      if (std::isnan(kernels::Softmax(p, seen))) continue;
      AddRow(p, seen, column());
      AddRow(p, seen, slash() + keys_ - seen);
    }
  }

  TileRows rows() const { return rows_; }
  int64_t keys() const { return keys_; }
  float* column() const { return scratch_[l_.column]; }  // [keys]
  float* slash() const { return scratch_[l_.slash]; }    // [keys], by last position - distance

  // The fewest columns, and the fewest slashes, that hold the share p of what was said, and `least`
  // of each where there are so many. Ties go to the first keys and the longest distances.
  Lines Fewest(double p, int64_t least) const {
    return Made(Fewest(column(), p, least, scratch_[l_.columns]),
                Fewest(slash(), p, least, scratch_[l_.slashes]));
  }
  // The best columns and slashes, guards first.
  Lines Best(int64_t columns, int64_t slashes, const Guards& guards) const {
    const int64_t local = std::min(guards.local, keys_);
    std::fill_n(column(), std::min(guards.sink, keys_), HUGE_VALF);
    std::fill_n(slash() + keys_ - local, local, HUGE_VALF);
    return Made(Best(column(), columns, scratch_[l_.columns]),
                Best(slash(), slashes, scratch_[l_.slashes]));
  }

 private:
  static void AddRow(const float* p, int64_t n, float* to) {
    for (int64_t j = 0; j < n; ++j) to[j] += p[j];
  }
  int64_t Best(const float* sums, int64_t k, uint32_t* ids) const {
    return kernels::TopK(sums, keys_, std::min(k, keys_), ids, scratch_[l_.select]).count;
  }
  int64_t Fewest(const float* sums, double p, int64_t least, uint32_t* ids) const {
    const int64_t n = kernels::TopP(sums, keys_, static_cast<float>(p), ids, scratch_[l_.select]);
    return n >= std::min(least, keys_) ? n : Best(sums, least, ids);
  }
  Lines Made(int64_t columns, int64_t slashes) const {
    return {.columns = scratch_[l_.columns],
            .num_columns = columns,
            .slashes = scratch_[l_.slashes],
            .num_slashes = slashes,
            .last = keys_ - 1};
  }

  const Layout& l_;
  WorkerScratch scratch_;
  int64_t keys_;
  TileRows rows_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_VERTICAL_SLASH_H_
