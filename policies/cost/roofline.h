#ifndef SLUICE_POLICIES_COST_ROOFLINE_H_
#define SLUICE_POLICIES_COST_ROOFLINE_H_
// How long a plan will take, before it runs: a roofline (Williams et al. 2009). Work is counted
// from the plan; the rates are fitted on this machine from a few measured plans of other shapes.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/attention_plan.h"
#include "sluice/api/pattern.h"

SLUICE_BEGIN_NAMESPACE
struct PlanWork {
  double macs = 0;         // multiply-adds of QK and PV, masked lanes of touched panels included
  double panel_bytes = 0;  // of keys and values brought into a panel, once a tile that wants them
  double items = 0;        // (head group, tile) pairs
  double bytes = 0;        // of distinct keys and values, at least once from memory
  void Add(const PlanWork& o) {
    macs += o.macs;
    panel_bytes += o.panel_bytes;
    items += o.items;
    bytes += o.bytes;
  }
};
struct WorkShape {
  int head_dim = 0, value_dim = 0;
  int64_t element_bytes = 4;  // of the KV cache
  int64_t token_group = 8;    // queries whose token lists are executed as one
};

namespace roofline_internal {
class WorkCounter {
 public:
  WorkCounter(const AttentionPlan& p, const WorkShape& s)
      : p_(p),
        shape_(s),
        pair_(s.head_dim + s.value_dim),
        row_bytes_(pair_ * static_cast<double>(s.element_bytes)),
        touched_((p.kv_len + 63) / 64),
        seen_(touched_.size()) {}
  PlanWork Count() {
    for (const AttentionBranch& b : p_.branches) {
      for (int64_t list = 0; list < b.num_lists; ++list) AddList(b, list);
    }
    return work_;
  }

 private:
  static constexpr int64_t kPanel = 64;  // the executor cuts keys at multiples of this

  void AddList(const AttentionBranch& b, int64_t list) {
    const bool tokens = b.encoding == Encoding::kTokens;
    const double heads = static_cast<double>(p_.heads) / static_cast<double>(b.num_lists);
    const double group = static_cast<double>(p_.heads / p_.kv_heads);
    const double kv_heads = heads / group;
    const bool one_head = b.scope == ListScope::kQueryHead;

    std::fill(touched_.begin(), touched_.end(), 0);
    const int64_t step = tokens ? std::max<int64_t>(1, shape_.token_group / b.tile) : 1;
    for (int64_t tile = 0; tile < b.num_tiles; tile += step) {
      const int64_t end = std::min(b.num_tiles, tile + step);
      const double queries =
          static_cast<double>(b.TileEnd(list, end - 1, p_.q_count) - b.TileBegin(list, tile));
      const double keys = tokens ? TokenKeys(b, list, tile, end) : TileKeys(b, list, tile);
      const double panels = one_head ? 1 : kv_heads;
      work_.macs += keys * queries * heads * pair_;
      work_.panel_bytes += keys * row_bytes_ * panels;
      work_.items += panels;
    }
    double distinct = 0;
    for (uint64_t bits : touched_) distinct += std::popcount(bits);
    work_.bytes += std::min(distinct, static_cast<double>(p_.kv_len)) * row_bytes_ *
                   (one_head ? 1 / group : kv_heads);
  }

  // Keys of a tile, in whole panels' lanes.
  double TileKeys(const AttentionBranch& b, int64_t list, int64_t tile) {
    if (b.encoding == Encoding::kPattern) return PatternKeys(b, list, tile);
    if (b.encoding == Encoding::kRankedPrefix)
      return static_cast<double>(b.rows.count[RowOf(b, list, tile)]) * static_cast<double>(b.block);
    return ListedKeys(b, list, tile);
  }
  double PatternKeys(const AttentionBranch& b, int64_t list, int64_t tile) {
    const int64_t last = LastQuery(b, list, tile);
    const int64_t first = p_.position(b.Query(list, b.TileBegin(list, tile)));
    const int64_t end = b.token_mask == MaskClass::kNone ? p_.kv_len : last + 1;
    double keys = 0;
    pattern::PatternRuns runs(b, list, {std::min(first, last), last + 1}, end, p_.kv_len);
    for (pattern::KeyRange run; runs.Next(run);) keys += Touch(run.lo, run.hi);
    return keys;
  }
  double ListedKeys(const AttentionBranch& b, int64_t list, int64_t tile) {
    const size_t row = RowOf(b, list, tile);
    double keys = 0;
    for (uint32_t i = 0; i < b.rows.count[row]; ++i) {
      const PlanEntry& e = b.entries[b.rows.begin[row] + i];
      int64_t lo = 0, hi = 0;
      EntryKeys(b, e, p_.kv_len, &lo, &hi);
      if (e.mask != MaskClass::kNone && e.state == EntryState::kExact && p_.key_perm.empty())
        hi = std::min(hi, LastQuery(b, list, tile) + 1);
      if (e.mask == MaskClass::kLowerBound)
        lo = std::max(lo, p_.position(tile * b.tile) - b.window + 1);
      if (hi > lo) keys += Touch(lo, hi);
    }
    return keys;
  }
  // Of several tiles that are executed as one: the union of their lists.
  double TokenKeys(const AttentionBranch& b, int64_t list, int64_t tile, int64_t end) {
    std::fill(seen_.begin(), seen_.end(), 0);
    for (; tile < end; ++tile) {
      const size_t row = RowOf(b, list, tile);
      for (uint32_t i = 0; i < b.rows.count[row]; ++i) {
        const uint32_t id = b.tokens[b.rows.begin[row] + i];
        seen_[id / 64] |= uint64_t{1} << (id % 64);
      }
    }
    double keys = 0;
    for (size_t i = 0; i < seen_.size(); ++i) {
      keys += std::popcount(seen_[i]);
      touched_[i] |= seen_[i];
    }
    return keys;
  }

  static size_t RowOf(const AttentionBranch& b, int64_t list, int64_t tile) {
    return static_cast<size_t>(list * b.num_tiles + tile);
  }
  int64_t LastQuery(const AttentionBranch& b, int64_t list, int64_t tile) const {
    int64_t last = 0;
    for (int64_t slot = b.TileBegin(list, tile); slot < b.TileEnd(list, tile, p_.q_count); ++slot)
      last = std::max(last, p_.position(b.Query(list, slot)));
    return last;
  }
  // Notes the panels of keys [lo, hi); how many keys these are.
  double Touch(int64_t lo, int64_t hi) {
    const int64_t end = std::min((hi - 1) / kPanel + 1, static_cast<int64_t>(touched_.size()));
    for (int64_t k = lo / kPanel; k < end; ++k) touched_[k] = ~uint64_t{0};
    return static_cast<double>(hi - lo);
  }

  const AttentionPlan& p_;
  const WorkShape& shape_;
  const double pair_, row_bytes_;
  std::vector<uint64_t> touched_;  // a bit a key: what the list brings in, whole panels of runs
  std::vector<uint64_t> seen_;
  PlanWork work_;
};
}  // namespace roofline_internal

// Counts what the executor will do with a plan. O(entries + tokens).
inline PlanWork WorkOf(const AttentionPlan& p, const WorkShape& s) {
  return roofline_internal::WorkCounter(p, s).Count();
}

// Seconds: max(compute, memory) + what a call costs. All rates are of the whole machine with the
// threads it was measured with.
struct MachineRates {
  double mac_s = 0, panel_byte_s = 0, item_s = 0, call_s = 0;  // compute side
  double byte_s = 0;                                           // memory side
  double Seconds(const PlanWork& w) const {
    return std::max(w.macs * mac_s + w.panel_bytes * panel_byte_s + w.items * item_s,
                    w.bytes * byte_s) +
           call_s;
  }
};
struct MeasuredPlan {
  PlanWork work;
  double seconds = 0;
};
// Non-negative rates that make the relative errors small (least squares on them, projected
// coordinate descent). Memory bandwidth is not fitted: give bytes_per_s as measured, 0: no memory
// side. Needs at least 4 plans of different work.
inline absl::StatusOr<MachineRates> FitMachine(const std::vector<MeasuredPlan>& plans,
                                               double bytes_per_s = 0) {
  if (plans.size() < 4)
    return absl::InvalidArgumentError(
        absl::StrCat("cost model: ", plans.size(), " measured plans, wanted 4 or more"));
  constexpr size_t kTerms = 4;
  double x[kTerms] = {};  // of terms scaled to their mean share of the time
  std::vector<std::array<double, kTerms>> a;
  std::array<double, kTerms> scale{};
  for (const MeasuredPlan& p : plans) {
    if (!(p.seconds > 0) || !std::isfinite(p.seconds))
      return absl::InvalidArgumentError(absl::StrCat("cost model: a plan took ", p.seconds, " s"));
    a.push_back({p.work.macs / p.seconds, p.work.panel_bytes / p.seconds, p.work.items / p.seconds,
                 1 / p.seconds});
    for (size_t k = 0; k < kTerms; ++k) scale[k] += a.back()[k] / static_cast<double>(plans.size());
  }
  for (auto& row : a) {
    for (size_t k = 0; k < kTerms; ++k) row[k] = scale[k] > 0 ? row[k] / scale[k] : 0;
  }
  for (int turn = 0; turn < 20000; ++turn) {
    for (size_t k = 0; k < kTerms; ++k) {
      double up = 0, down = 0;
      for (const auto& row : a) {
        double rest = 1;
        for (size_t j = 0; j < kTerms; ++j) rest -= j == k ? 0 : row[j] * x[j];
        up += row[k] * rest;
        down += row[k] * row[k];
      }
      x[k] = down > 0 ? std::max(0.0, up / down) : 0;
    }
  }
  const auto rate = [&](size_t k) { return scale[k] > 0 ? x[k] / scale[k] : 0; };
  return MachineRates{rate(0), rate(1), rate(2), rate(3), bytes_per_s > 0 ? 1 / bytes_per_s : 0};
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_COST_ROOFLINE_H_
