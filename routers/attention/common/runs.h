#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_RUNS_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_RUNS_H_
// Lists of runs of keys (Encoding::kRuns), made of pieces that may overlap.
#include "sluice/routers/attention/common/plan.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// Keys that a tile keeps whatever is said of them.
struct Guards {
  int64_t sink = 0;   // the first keys
  int64_t local = 1;  // the last ones before each query, its own included
};

// Writes one list row of runs from pieces that come by rising begin: pieces that meet become one
// entry. At most CeilDiv(keys, 2) entries.
class RunWriter {
 public:
  // The row of a tile, begun with the first keys.
  RunWriter(const Guards& guards, const TileQueries& q, PlanEntry* out)
      : out_(out), local_(std::max<int64_t>(0, q.first + 1 - guards.local)), end_(q.last + 1) {
    Add(0, std::min(guards.sink, end_));
  }
  // Keys [begin, end); what the last keys hold is theirs.
  void Add(int64_t begin, int64_t end) {
    if (begin < local_) Put(begin, end);
  }
  // Adds the last keys; returns how many entries the row has.
  int64_t Finish() {
    Put(local_, end_);
    return n_;
  }

 private:
  void Put(int64_t begin, int64_t end) {
    begin = std::max<int64_t>(0, begin);
    end = std::min(end, end_);
    if (begin >= end) return;
    if (n_ > 0 && begin <= reached_) {
      reached_ = std::max(reached_, end);
      out_[n_ - 1].len = static_cast<uint32_t>(reached_ - out_[n_ - 1].start);
      return;
    }
    out_[n_++] = ExactEntry(begin, end - begin);
    reached_ = end;
  }

  PlanEntry* out_;
  int64_t local_;
  int64_t end_;
  int64_t n_ = 0;
  int64_t reached_ = 0;
};
inline int64_t RunSlots(const AttentionShape& s) { return CeilDiv(s.max_kv, 2) + 1; }
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_RUNS_H_
