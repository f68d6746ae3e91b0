#include "sluice/runtime/attend/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "sluice/runtime/attend/attend_reference.h"

SLUICE_BEGIN_NAMESPACE
double RowStat::mean() const {
  double s = 0;
  for (double x : x_) s += x;
  return x_.empty() ? std::numeric_limits<double>::quiet_NaN() : s / static_cast<double>(x_.size());
}
double RowStat::quantile(double q) const {
  if (x_.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::vector<double> s = x_;
  const size_t at = static_cast<size_t>(q * static_cast<double>(s.size() - 1));
  std::nth_element(s.begin(), s.begin() + static_cast<int64_t>(at), s.end());
  return s[at];
}
void PlanQuality::Add(const PlanQuality& o) {
  density.Add(o.density);
  mass_recall.Add(o.mass_recall);
  rel_error.Add(o.rel_error);
  bound_slack.Add(o.bound_slack);
  regret.Add(o.regret);
  block_recall.Add(o.block_recall);
}

PlanQuality MeasurePlan(const AttentionPlan& plan, const HeadsView<const float>& q, const KvView& k,
                        const KvView& v, float scale, const HeadsView<const float>& o,
                        const QualityOptions& options) {
  PlanQuality out;
  const int64_t g = plan.heads / plan.kv_heads, dv = v.dim;
  std::vector<double> p, dense(dv), blocks;
  std::vector<float> key(k.dim);
  std::vector<bool> selected;
  for (int64_t h = 0; h < plan.heads; ++h) {
    const int64_t kv = h / g;
    double v_max = 0;
    for (int64_t s = 0; s < plan.kv_len && !o.empty(); ++s) {
      double n = 0;
      for (int64_t x = 0; x < dv; ++x) n += static_cast<double>(v.Get(s, kv, x)) * v.Get(s, kv, x);
      v_max = std::max(v_max, std::sqrt(n));
    }
    for (int64_t i = 0; i < plan.q_count; i += options.query_stride) {
      const int64_t keys = std::min(plan.kv_len, plan.position(i) + 1);
      p.assign(keys, 0);
      double m = -std::numeric_limits<double>::infinity(), l = 0;
      for (int64_t s = 0; s < keys; ++s) {
        double x = 0;
        for (int64_t c = 0; c < k.dim; ++c)
          x += static_cast<double>(q.at(i, h)[c]) * k.Get(s, kv, c);
        m = std::max(m, p[s] = x * scale);
      }
      for (double& x : p) l += x = std::exp(x - m);
      std::fill(dense.begin(), dense.end(), 0.0);
      for (int64_t s = 0; s < keys; ++s) {
        p[s] /= l;
        if (!o.empty()) {
          for (int64_t x = 0; x < dv; ++x) dense[x] += p[s] * v.Get(s, kv, x);
        }
      }
      selected.assign(keys, false);
      int64_t n = 0;
      double mass = 0;
      for (const AttentionBranch& b : plan.branches) {
        ForEachPair(plan, b, i, h, [&](int64_t s, int table, double) {
          if (table > 0) return;
          selected[s] = true;
          mass += p[s];
          ++n;
        });
      }
      out.density.Add(static_cast<double>(n) / static_cast<double>(keys));
      out.mass_recall.Add(mass);
      if (!o.empty()) {
        double err = 0, norm = 0;
        for (int64_t x = 0; x < dv; ++x) {
          const double e = o.at(i, h)[x] - dense[x];
          err += e * e;
          norm += dense[x] * dense[x];
        }
        out.rel_error.Add(std::sqrt(err / std::max(norm, 1e-300)));
        // Rounding of fp32 sums is not the plan's doing: allow it before comparing with the bound.
        const double bound = std::max(0.0, 1 - mass) * 2 * v_max + 1e-5 * v_max;
        out.bound_slack.Add(n > 0 ? std::sqrt(err) / bound : 0);
      }
      const int64_t nb = (keys + options.block - 1) / options.block;
      blocks.assign(nb, 0);
      std::vector<bool> touched(nb, false);
      for (int64_t s = 0; s < keys; ++s) {
        blocks[s / options.block] += p[s];
        if (selected[s]) touched[s / options.block] = true;
      }
      std::vector<size_t> order(nb);
      for (size_t b = 0; b < order.size(); ++b) order[b] = b;
      std::stable_sort(order.begin(), order.end(),
                       [&](size_t a, size_t b) { return blocks[a] > blocks[b]; });
      double best = 0;
      int64_t left = n, hits = 0;
      const int64_t wanted = std::count(touched.begin(), touched.end(), true);
      for (size_t r = 0; r < order.size(); ++r) {
        const int64_t size =
            std::min(options.block, keys - static_cast<int64_t>(order[r]) * options.block);
        if (left > 0)
          best += blocks[order[r]] * static_cast<double>(std::min(left, size)) /
                  static_cast<double>(size);
        left -= size;
        if (static_cast<int64_t>(r) < wanted) hits += touched[order[r]];
      }
      out.regret.Add(best - mass);
      if (wanted > 0) out.block_recall.Add(static_cast<double>(hits) / static_cast<double>(wanted));
    }
  }
  return out;
}

double IoU(absl::Span<const uint32_t> a, absl::Span<const uint32_t> b) {
  size_t i = 0, j = 0, both = 0;
  while (i < a.size() && j < b.size()) {
    both += a[i] == b[j];
    const bool step_a = a[i] <= b[j], step_b = b[j] <= a[i];
    i += step_a;
    j += step_b;
  }
  const size_t any = a.size() + b.size() - both;
  return any == 0 ? 1 : static_cast<double>(both) / static_cast<double>(any);
}
double UnionOverOwn(const AttentionBranch& b, int64_t first, int64_t last) {
  std::set<uint32_t> all;
  double own = 0;
  for (int64_t r = first; r < last; ++r) {
    const size_t at = b.rows.begin[r], n = b.rows.count[r];
    all.insert(b.tokens.begin() + static_cast<int64_t>(at),
               b.tokens.begin() + static_cast<int64_t>(at + n));
    own += static_cast<double>(n);
  }
  return own > 0 ? static_cast<double>(all.size()) * static_cast<double>(last - first) / own : 1;
}
SLUICE_END_NAMESPACE
