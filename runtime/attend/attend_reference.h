#ifndef SLUICE_RUNTIME_ATTEND_ATTEND_REFERENCE_H_
#define SLUICE_RUNTIME_ATTEND_ATTEND_REFERENCE_H_
// The specification of the executor: plain loops in double precision over the pairs that a plan
// allows. Stop rules are the executor's own affair and not applied here.
#include <cmath>
#include <limits>
#include <vector>

#include "sluice/api/attention_plan.h"
#include "sluice/api/dtype.h"
#include "sluice/runtime/attend/attend.h"

SLUICE_BEGIN_NAMESPACE
struct ReferenceAttention {
  std::vector<double> o, lse;    // [q_count, heads, dv], [q_count, heads]
  std::vector<double> key_mass;  // [heads, kv_len]
  std::vector<double> row_max;   // [q_count, heads]
  int64_t exact_pairs = 0, summary_pairs = 0;
};

namespace attend_reference {
// One dimension of a generalised neighbourhood, straight from its definition.
inline bool NeighbourSees(int64_t len, int64_t w, int64_t s, int64_t dilation, bool causal,
                          int64_t i, int64_t j) {
  if (i % dilation != j % dilation) return false;
  const int64_t group = i % dilation;
  const int64_t members = len / dilation + (group < len % dilation ? 1 : 0);
  i /= dilation;
  j /= dilation;
  const int64_t left = w / 2, right = w / 2 + (w % 2) - 1;
  int64_t start = 0, end = 0;
  if (causal) {
    const int64_t leader = std::min((i / s) * s + s - 1, members - 1);
    start = std::max<int64_t>(leader - left - right, 0);
    end = std::min(i + 1, members);
  } else {
    const int64_t leader = std::min((i / s) * s + s / 2, members - 1);
    start = std::max<int64_t>(leader - left, 0);
    if (leader + right >= members) start += members - right - leader - 1;
    end = start + w;
  }
  return j >= start && j < end;
}

inline bool TermSees(const PatternTerm& t, int64_t q, int64_t k, int64_t n) {
  if (t.kind == PatternKind::kSink) return k < t.a;
  if (t.kind == PatternKind::kBand) {
    const int64_t span = t.a + static_cast<int64_t>(t.slope * static_cast<double>(n));
    return k <= q && q - k < span;
  }
  if (t.kind == PatternKind::kStrideAbsolute) return (k + t.b) % t.a == 0;
  if (t.kind == PatternKind::kStrideRelative) return q - k >= t.b && (q - k) % t.a == 0;
  if (t.kind == PatternKind::kPowersOfTwo) {
    for (int64_t power = 1; power <= q - k; power *= 2) {
      if (power == q - k) return true;
    }
    return false;
  }
  if (t.kind == PatternKind::kDilated) {
    for (int64_t i = 0; i < t.a; ++i) {
      if (q - i * t.b == k) return true;
    }
    return false;
  }
  int64_t below = 1;
  for (int x = 1; x < t.dims; ++x) below *= t.extent[x];
  for (int x = 0; x < t.dims; ++x) {
    if (!NeighbourSees(t.extent[x], t.window[x], t.stride[x], t.dilation[x], ((t.a >> x) & 1) != 0,
                       q / below % t.extent[x], k / below % t.extent[x]))
      return false;
    if (x + 1 < t.dims) below /= t.extent[x + 1];
  }
  return true;
}
}  // namespace attend_reference

// visit(key or table row, table, log-domain bias, tile membership) for every pair that branch `b`
// gives query i and head h; with an own query order a query may be a member of several tiles, or of
// none.
template <class Visit>
void ForEachMemberPair(const AttentionPlan& p, const AttentionBranch& b, int64_t i, int64_t h,
                       Visit&& visit) {
  const int64_t g = p.heads / p.kv_heads, kv = h / g, t = p.position(i);
  const int64_t list = b.scope == ListScope::kQueryHead ? h
                       : b.scope == ListScope::kKvHead  ? kv
                                                        : 0;
  const uint32_t* perm = p.Perm(h);
  int64_t membership = 0;
  for (int64_t tile = 0; tile < b.num_tiles; ++tile) {
    for (int64_t slot = b.TileBegin(list, tile); slot < b.TileEnd(list, tile, p.q_count); ++slot) {
      if (b.Query(list, slot) != i) continue;
      const int64_t bit = slot - b.TileBegin(list, tile);
      const auto exact = [&](int64_t logical, MaskClass mask, int64_t entry) {
        const int64_t key = perm == nullptr ? logical : perm[logical];
        if (mask != MaskClass::kNone && key > t) return;
        if (mask == MaskClass::kLowerBound && key <= t - b.window) return;
        if (!b.row_mask.empty() && ((b.row_mask[entry] >> bit) & 1) == 0) return;
        double bias = p.key_bias.empty() ? 0.0 : p.key_bias[kv * p.kv_len + key];
        if (!b.entry_bias.empty() && b.stop != StopRule::kScore) bias += b.entry_bias[entry];
        visit(key, 0, bias, membership);
      };
      if (b.encoding == Encoding::kPattern) {
        const int64_t units = (p.kv_len + b.block - 1) / b.block;
        for (int64_t key = 0; key < p.kv_len; ++key) {
          bool sees = false;
          for (int64_t x = b.term_begin[list]; x < b.term_begin[list + 1]; ++x)
            sees =
                sees || attend_reference::TermSees(b.terms[x], t / b.block, key / b.block, units);
          if (sees) exact(key, b.token_mask, 0);
        }
        ++membership;
        continue;
      }
      const int64_t row = list * b.num_tiles + tile;
      for (int64_t c = 0; c < b.rows.count[row]; ++c) {
        const int64_t at = b.rows.begin[row] + c;
        if (b.encoding == Encoding::kTokens) {
          exact(b.tokens[at], b.token_mask, at);
        } else if (b.encoding == Encoding::kRankedPrefix) {
          if (c >= b.prefix[h * b.num_tiles + tile]) break;
          const int64_t end = std::min(p.kv_len, (b.tokens[at] + int64_t{1}) * b.block);
          for (int64_t k = b.tokens[at] * b.block; k < end; ++k) exact(k, b.token_mask, at);
        } else {
          const PlanEntry& e = b.entries[at];
          int64_t lo = 0, hi = 0;
          EntryKeys(b, e, p.kv_len, &lo, &hi);
          for (int64_t k = lo; k < hi; ++k) {
            if (e.state == EntryState::kExact) {
              exact(k, e.mask, at);
              continue;
            }
            if (!b.row_mask.empty() && ((b.row_mask[at] >> bit) & 1) == 0) continue;
            const SummaryTable& table = p.tables[e.level - 1];
            const double count = table.log_count[table.per_head ? kv * table.k.rows + k : k];
            const double bias = b.entry_bias.empty() ? 0.0 : b.entry_bias[at];
            visit(k, e.level, bias + count, membership);
          }
        }
      }
      ++membership;
    }
  }
}
// The same where memberships do not matter.
template <class Visit>
void ForEachPair(const AttentionPlan& p, const AttentionBranch& b, int64_t i, int64_t h,
                 Visit&& visit) {
  ForEachMemberPair(p, b, i, h,
                    [&](int64_t key, int table, double bias, int64_t) { visit(key, table, bias); });
}

inline ReferenceAttention AttendReference(const AttentionPlan& p, const HeadsView<const float>& q,
                                          const KvView& k, const KvView& v, double scale,
                                          double softcap = 0, const LogitMask& mask = {}) {
  ReferenceAttention out;
  const int64_t dv = v.dim, g = p.heads / p.kv_heads;
  const double kEmpty = -std::numeric_limits<double>::infinity();
  out.o.assign(p.q_count * p.heads * dv, 0);
  out.lse.assign(p.q_count * p.heads, kEmpty);
  out.row_max.assign(p.q_count * p.heads, 0);
  out.key_mass.assign(p.heads * p.kv_len, 0);
  struct Term {
    double logit;
    int64_t key;
    int table;
  };
  const bool mean = p.merge == Merge::kMean;
  for (int64_t i = 0; i < p.q_count; ++i) {
    for (int64_t h = 0; h < p.heads; ++h) {
      // One softmax a group: of all branches, of each branch, or of each membership.
      std::vector<std::vector<Term>> terms(mean || p.merge == Merge::kLse ? 1 : p.branches.size());
      if (mean) terms.clear();
      for (size_t bi = 0; bi < p.branches.size(); ++bi) {
        const AttentionBranch& b = p.branches[bi];
        if (b.init_from >= 0 && p.merge == Merge::kWeightedSum) terms[bi] = terms[b.init_from];
        ForEachMemberPair(p, b, i, h, [&](int64_t key, int table, double bias, int64_t membership) {
          const KvView& from = table > 0 ? p.tables[table - 1].k : k;
          double s = 0;
          for (int64_t x = 0; x < q.dim; ++x)
            s += static_cast<double>(q.at(i, h)[x]) * from.Get(key, h / g, x);
          s *= scale;
          if (softcap > 0) s = softcap * std::tanh(s / softcap);
          if (!mask.empty() && table == 0) {
            const double added = F16ToF32(mask.values[i * mask.stride + key]);
            if (added == kEmpty) return;
            bias += added * (mask.slopes != nullptr ? mask.slopes[h] : 1.0f);
          }
          const size_t group = mean                     ? static_cast<size_t>(membership)
                               : p.merge == Merge::kLse ? 0
                                                        : bi;
          if (group >= terms.size()) terms.resize(group + 1);
          terms[group].push_back({s + bias, key, table});
          ++(table > 0 ? out.summary_pairs : out.exact_pairs);
        });
        if (!mean) continue;
        int64_t members = 0;  // tiles without keys count as outputs of zero
        const int64_t list = ListOf(p, b, h);
        for (int64_t s = b.TileBegin(list, 0); s < b.TileEnd(list, b.num_tiles - 1, p.q_count); ++s)
          members += b.Query(list, s) == i;
        terms.resize(static_cast<size_t>(members));
      }
      double* o = &out.o[(i * p.heads + h) * dv];
      for (size_t group = 0; group < terms.size(); ++group) {
        double m = kEmpty, l = 0;
        bool nan = false;
        for (const Term& t : terms[group]) {
          m = std::fmax(m, t.logit);
          nan = nan || std::isnan(t.logit);
        }
        if (m == kEmpty && !nan) continue;  // no keys, or none that weighs anything
        for (const Term& t : terms[group]) l += std::exp(t.logit - m);
        double weight = 1;
        if (p.merge == Merge::kWeightedSum)
          weight = p.branch_weight[(group * p.q_count + i) * p.heads + h];
        if (mean) weight = 1.0 / static_cast<double>(terms.size());
        for (const Term& t : terms[group]) {
          const KvView& from = t.table > 0 ? p.tables[t.table - 1].v : v;
          const double prob = std::exp(t.logit - m) / l;
          for (int64_t x = 0; x < dv; ++x) o[x] += weight * prob * from.Get(t.key, h / g, x);
          if (t.table == 0) out.key_mass[h * p.kv_len + t.key] += prob;
          out.row_max[i * p.heads + h] = std::max(out.row_max[i * p.heads + h], prob);
        }
        if (p.merge == Merge::kLse) out.lse[i * p.heads + h] = m + std::log(l);
      }
    }
  }
  return out;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_ATTEND_REFERENCE_H_
