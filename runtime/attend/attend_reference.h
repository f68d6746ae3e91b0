#ifndef SLUICE_RUNTIME_ATTEND_ATTEND_REFERENCE_H_
#define SLUICE_RUNTIME_ATTEND_ATTEND_REFERENCE_H_
// The specification of the executor: plain loops in double precision over the pairs a plan allows.
#include <cmath>
#include <limits>
#include <vector>

#include "sluice/api/attention_plan.h"

SLUICE_BEGIN_NAMESPACE
struct ReferenceAttention {
  std::vector<double> o, lse;  // [q_count, heads, dv], [q_count, heads]
  int64_t exact_pairs = 0, approx_pairs = 0;
};

// visit(key or table row, table, log-domain bias) for every pair that branch `b` gives query i and
// head h.
template <class Visit>
void ForEachPair(const AttentionPlan& p, const AttentionBranch& b,
                 absl::Span<const SummaryTable> tables, int64_t i, int64_t h, Visit&& visit) {
  const int64_t g = p.heads / p.kv_heads, kv = h / g, tile = i / p.tile, t = p.position(i);
  const int64_t list = b.encoding == Encoding::kRankedPrefix || p.scope == ListScope::kKvHead ? kv
                       : p.scope == ListScope::kQueryHead                                     ? h
                                                                                              : 0;
  const size_t row = static_cast<size_t>(list * p.num_tiles() + tile);
  const auto exact = [&](int64_t logical, MaskClass mask, size_t entry) {
    const int64_t key = p.kperm.empty() ? logical : p.kperm[logical];
    if (mask != MaskClass::kNone && key > t) return;
    if (mask == MaskClass::kLowerBound && key <= t - p.window) return;
    if (!b.row_mask.empty() && ((b.row_mask[entry] >> (i % p.tile)) & 1) == 0) return;
    visit(key, 0,
          (b.entry_bias.empty() ? 0.0 : b.entry_bias[entry]) +
              (p.key_bias.empty() ? 0.0 : p.key_bias[kv * p.kv_len + key]));
  };
  for (uint32_t c = 0; c < b.rows.count[row]; ++c) {
    const size_t at = b.rows.begin[row] + c;
    if (b.encoding == Encoding::kTokens) {
      exact(b.tokens[at], b.token_mask, at);
    } else if (b.encoding == Encoding::kRankedPrefix) {
      if (c >= b.prefix[h * p.num_tiles() + tile]) break;
      for (int64_t k = b.tokens[at] * b.unit;
           k < std::min(p.kv_len, (b.tokens[at] + int64_t{1}) * b.unit); ++k)
        exact(k, b.token_mask, at);
    } else {
      const PlanEntry& e = b.entries[at];
      int64_t lo = 0, hi = 0;
      EntryKeys(b, e, p.kv_len, &lo, &hi);
      for (int64_t k = lo; k < hi; ++k) {
        if (e.state == EntryState::kExact) {
          exact(k, e.mask, at);
        } else if (b.row_mask.empty() || ((b.row_mask[at] >> (i % p.tile)) & 1) != 0) {
          visit(
              k, e.level,
              (b.entry_bias.empty() ? 0.0 : b.entry_bias[at]) + tables[e.level - 1u].log_count[k]);
        }
      }
    }
  }
}

inline ReferenceAttention AttendReference(const AttentionPlan& p, const HeadsView<const float>& q,
                                          const KvView& k, const KvView& v, double scale,
                                          double softcap = 0,
                                          absl::Span<const SummaryTable> tables = {}) {
  ReferenceAttention out;
  const int64_t dv = v.dim, g = p.heads / p.kv_heads;
  out.o.assign(p.q_count * p.heads * dv, 0);
  out.lse.assign(p.q_count * p.heads, -std::numeric_limits<double>::infinity());
  struct Term {
    double logit;
    int64_t key;
    int table;
  };
  for (int64_t i = 0; i < p.q_count; ++i) {
    for (int64_t h = 0; h < p.heads; ++h) {
      std::vector<std::vector<Term>> terms(p.branches.size());
      for (size_t bi = 0; bi < p.branches.size(); ++bi) {
        if (p.branches[bi].init_from >= 0 && p.merge == Merge::kWeightedSum)
          terms[bi] = terms[p.branches[bi].init_from];
        ForEachPair(p, p.branches[bi], tables, i, h, [&](int64_t key, int table, double bias) {
          const KvView& from = table > 0 ? tables[table - 1].k : k;
          double s = 0;
          for (int64_t x = 0; x < q.dim; ++x)
            s += static_cast<double>(q.at(i, h)[x]) * from.Get(key, h / g, x);
          s *= scale;
          if (softcap > 0) s = softcap * std::tanh(s / softcap);
          terms[bi].push_back({s + bias, key, table});
          ++(table > 0 ? out.approx_pairs : out.exact_pairs);
        });
      }
      if (p.merge == Merge::kLse) {
        for (size_t bi = 1; bi < terms.size(); ++bi)
          terms[0].insert(terms[0].end(), terms[bi].begin(), terms[bi].end());
        terms.resize(1);
      }
      double* o = &out.o[(i * p.heads + h) * dv];
      for (size_t bi = 0; bi < terms.size(); ++bi) {
        if (terms[bi].empty()) continue;
        double m = -std::numeric_limits<double>::infinity(), l = 0;
        for (const Term& t : terms[bi]) m = std::fmax(m, t.logit);
        for (const Term& t : terms[bi]) l += std::exp(t.logit - m);
        const double weight =
            p.merge == Merge::kLse
                ? 1
                : p.branch_weight[(bi * static_cast<size_t>(p.q_count) + static_cast<size_t>(i)) *
                                      static_cast<size_t>(p.heads) +
                                  static_cast<size_t>(h)];
        for (const Term& t : terms[bi]) {
          const KvView& from = t.table > 0 ? tables[t.table - 1].v : v;
          for (int64_t x = 0; x < dv; ++x)
            o[x] += weight * std::exp(t.logit - m) / l * from.Get(t.key, h / g, x);
        }
        if (p.merge == Merge::kLse) out.lse[i * p.heads + h] = m + std::log(l);
      }
    }
  }
  return out;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_ATTEND_REFERENCE_H_
