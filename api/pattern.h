#ifndef SLUICE_API_PATTERN_H_
#define SLUICE_API_PATTERN_H_
// Static patterns in closed form: which keys a query sees (PatternSees), and the runs of keys that
// any query of a tile may see (PatternRuns), found one after another without listing them.
#include <algorithm>
#include <bit>
#include <cstdint>

#include "sluice/api/attention_plan.h"

SLUICE_BEGIN_NAMESPACE
namespace pattern {
struct KeyRange {
  int64_t lo = 0;
  int64_t hi = 0;  // lo >= hi: none
};

// Window of coordinate i of one dimension of a box, in the dimension's own coordinates; with
// dilation its members are lo, lo + dilation, ... below hi.
inline KeyRange BoxWindow(const PatternTerm& t, int x, int64_t i) {
  const int64_t d = t.dilation[x];
  const int64_t group = i % d;
  const int64_t at = i / d;
  const int64_t len = t.extent[x] / d + (group < t.extent[x] % d ? 1 : 0);
  const int64_t w = t.window[x];
  const int64_t s = t.stride[x];
  const int64_t left = w / 2;
  const int64_t right = w / 2 + w % 2 - 1;
  KeyRange r;
  if ((t.a >> x) & 1) {  // causal in this dimension
    const int64_t leader = std::min(at / s * s + s - 1, len - 1);
    r.lo = std::max<int64_t>(leader - left - right, 0);
    r.hi = std::min(at + 1, len);
  } else {
    const int64_t leader = std::min(at / s * s + s / 2, len - 1);
    r.lo = std::max<int64_t>(leader - left, 0);
    if (leader + right >= len) r.lo += len - right - leader - 1;
    r.hi = r.lo + w;
  }
  return {r.lo * d + group, (r.hi - 1) * d + group + 1};
}

// Whether a query sees a key, both in the pattern's units; causality aside.
inline bool PatternSees(const PatternTerm& t, int64_t query, int64_t key, int64_t kv_units) {
  const int64_t distance = query - key;
  switch (t.kind) {
    case PatternKind::kSink:
      return key < t.a;
    case PatternKind::kBand:
      return distance < t.a + static_cast<int64_t>(t.slope * static_cast<double>(kv_units)) &&
             distance >= 0;
    case PatternKind::kStrideAbsolute:
      return (key + t.b) % t.a == 0;
    case PatternKind::kStrideRelative:
      return distance >= t.b && distance % t.a == 0;
    case PatternKind::kPowersOfTwo:
      return distance > 0 && std::has_single_bit(static_cast<uint64_t>(distance));
    case PatternKind::kDilated:
      return distance >= 0 && distance < t.a * t.b && distance % t.b == 0;
    case PatternKind::kBox:
      break;
  }
  for (int x = t.dims - 1; x >= 0; --x) {
    const int64_t q = query % t.extent[x];
    const int64_t k = key % t.extent[x];
    query /= t.extent[x];
    key /= t.extent[x];
    const KeyRange r = BoxWindow(t, x, q);
    if (k < r.lo || k >= r.hi || (k - r.lo) % t.dilation[x] != 0) return false;
  }
  return true;
}

// The first run at or after `from` that some query of [q.lo, q.hi) may see; a superset where a
// closed form would not pay. Empty when there is none below `end`.
inline KeyRange NextRun(const PatternTerm& t, KeyRange q, int64_t from, int64_t end,
                        int64_t kv_units) {
  const auto clip = [&](int64_t lo, int64_t hi) {
    return KeyRange{std::max(lo, from), std::min(hi, end)};
  };
  const int64_t last = q.hi - 1;
  const int64_t span = last - q.lo;
  // Runs of keys at distances that are multiples of `by`, the nearest at least `least`.
  const auto strided = [&](int64_t by, int64_t least) {
    const int64_t stop = std::min(end, last - least + 1);
    if (from >= stop) return KeyRange{};
    if (span + 1 >= by) return clip(from, stop);
    const int64_t behind = (last - from) % by;
    const int64_t lo = behind <= span ? from : from + behind - span;
    return clip(lo, std::min(stop, lo + std::min(behind, span) + 1));
  };
  switch (t.kind) {
    case PatternKind::kSink:
      return clip(0, t.a);
    case PatternKind::kBand:
      return clip(q.lo - (t.a + static_cast<int64_t>(t.slope * static_cast<double>(kv_units))) + 1,
                  last + 1);
    case PatternKind::kStrideAbsolute: {
      const int64_t lo = from + (t.a - (from + t.b) % t.a) % t.a;
      return clip(lo, t.a == 1 ? end : lo + 1);
    }
    case PatternKind::kStrideRelative:
      return strided(t.a, t.b);
    case PatternKind::kDilated: {
      const int64_t lowest = std::max(from, q.lo - (t.a - 1) * t.b);
      if (lowest > from) return NextRun(t, q, lowest, end, kv_units);
      return strided(t.b, 0);
    }
    case PatternKind::kPowersOfTwo:
      for (int64_t j = 62; j >= 0; --j) {
        const int64_t power = int64_t{1} << j;
        if (power > last) continue;
        const KeyRange r = clip(q.lo - power, last - power + 1);
        if (r.lo < r.hi) return r;
      }
      return {};
    case PatternKind::kBox:
      break;
  }
  // Bounding box of the queries: exact in the last dimension's rows, whole planes above.
  int64_t below = 1;
  for (int x = 1; x < t.dims; ++x) below *= t.extent[x];
  const int64_t first_row = q.lo / below;
  const int64_t last_row = last / below;
  if (first_row >= t.extent[0]) return {};
  const KeyRange top = BoxWindow(t, 0, first_row);
  KeyRange bottom = BoxWindow(t, 0, std::min<int64_t>(last_row, t.extent[0] - 1));
  int64_t lo = std::min(top.lo, bottom.lo);
  int64_t hi = std::max(top.hi, bottom.hi);
  if (t.dilation[0] > 1 && first_row != last_row) {  // neighbours belong to other groups
    lo = 0;
    hi = t.extent[0];
  }
  return clip(lo * below, hi * below);
}

// The runs that the queries [q.lo, q.hi) of a list may see, ascending and disjoint, in keys.
class PatternRuns {
 public:
  PatternRuns() = default;
  // `positions`: of the tile's first and last query; `end`: one past the last key of interest.
  PatternRuns(const AttentionBranch& b, int64_t list, KeyRange positions, int64_t end,
              int64_t kv_len)
      : terms_(b.terms.subspan(b.term_begin[list], b.term_begin[list + 1] - b.term_begin[list])),
        block_(b.block),
        q_{positions.lo / b.block, (positions.hi - 1) / b.block + 1},
        end_((end + b.block - 1) / b.block),
        last_key_(end),
        kv_units_((kv_len + b.block - 1) / b.block) {}

  bool Next(KeyRange& run) {
    KeyRange best;
    for (const PatternTerm& t : terms_) {
      const KeyRange r = NextRun(t, q_, at_, end_, kv_units_);
      if (r.lo >= r.hi) continue;
      if (best.lo >= best.hi || r.lo < best.lo) best = r;
    }
    if (best.lo >= best.hi) return false;
    for (bool grown = true; grown;) {  // terms that go on where this one ends
      grown = false;
      for (const PatternTerm& t : terms_) {
        const KeyRange r = NextRun(t, q_, best.hi, end_, kv_units_);
        if (r.lo < r.hi && r.lo == best.hi) {
          best.hi = r.hi;
          grown = true;
        }
        const KeyRange over = NextRun(t, q_, best.lo, end_, kv_units_);
        if (over.lo < over.hi && over.lo <= best.hi && over.hi > best.hi) {
          best.hi = over.hi;
          grown = true;
        }
      }
    }
    at_ = best.hi;
    run = {best.lo * block_, std::min(best.hi * block_, last_key_)};
    return run.lo < run.hi;
  }

  // Whether one sink or band shows all of these keys to all of the tile's queries; causality aside.
  bool Covers(int64_t begin, int64_t end) const {
    const KeyRange keys = {begin / block_, (end - 1) / block_ + 1};
    for (const PatternTerm& t : terms_) {
      if (t.kind == PatternKind::kSink && keys.hi <= t.a) return true;
      const int64_t width = t.a + static_cast<int64_t>(t.slope * static_cast<double>(kv_units_));
      const bool within = keys.lo > q_.hi - 1 - width && keys.hi - 1 <= q_.lo;
      if (t.kind == PatternKind::kBand && within) return true;
    }
    return false;
  }

  // Whether the query at a position sees a key under any term.
  bool Sees(int64_t position, int64_t key) const {
    for (const PatternTerm& t : terms_) {
      if (PatternSees(t, position / block_, key / block_, kv_units_)) return true;
    }
    return false;
  }

 private:
  absl::Span<const PatternTerm> terms_;
  int64_t block_ = 1;
  KeyRange q_;
  int64_t end_ = 0;
  int64_t last_key_ = 0;
  int64_t kv_units_ = 0;
  int64_t at_ = 0;
};
}  // namespace pattern
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_PATTERN_H_
