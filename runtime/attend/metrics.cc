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

namespace {
// One query of one head: what dense attention says of its keys, and which of them the plan selects.
struct Row {
  int64_t query = 0, head = 0, keys = 0;
  std::vector<double> p;      // [keys] dense probabilities
  std::vector<double> dense;  // [value dim] dense output
  std::vector<bool> selected;
  int64_t count = 0;  // pairs that the plan lists
  double mass = 0;    // their probability
};

class PlanMeter {
 public:
  PlanMeter(const AttentionPlan& plan, const HeadsView<const float>& q, const KvView& k,
            const KvView& v, float scale, const HeadsView<const float>& o,
            const QualityOptions& options)
      : plan_(plan), q_(q), k_(k), v_(v), scale_(scale), o_(o), options_(options) {}
  PlanQuality Measure() {
    for (int64_t h = 0; h < plan_.heads; ++h) {
      const double largest = o_.empty() ? 0 : LargestValue(KvHead(h));
      for (int64_t i = 0; i < plan_.q_count; i += options_.query_stride) {
        Begin(i, h);
        Attend();
        Select();
        out_.density.Add(static_cast<double>(row_.count) / static_cast<double>(row_.keys));
        out_.mass_recall.Add(row_.mass);
        if (!o_.empty()) AddError(largest);
        AddBlocks();
      }
    }
    return std::move(out_);
  }

 private:
  int64_t KvHead(int64_t head) const { return head / (plan_.heads / plan_.kv_heads); }
  // max|v| over all keys of a KV head.
  double LargestValue(int64_t kv) const {
    double largest = 0;
    for (int64_t s = 0; s < plan_.kv_len; ++s) {
      double n = 0;
      for (int64_t x = 0; x < v_.dim; ++x)
        n += static_cast<double>(v_.Get(s, kv, x)) * v_.Get(s, kv, x);
      largest = std::max(largest, std::sqrt(n));
    }
    return largest;
  }

  void Begin(int64_t query, int64_t head) {
    row_.query = query;
    row_.head = head;
    row_.keys = std::min(plan_.kv_len, plan_.position(query) + 1);
    row_.p.assign(row_.keys, 0);
    row_.dense.assign(v_.dim, 0);
    row_.selected.assign(row_.keys, false);
    row_.count = 0;
    row_.mass = 0;
  }
  // Dense probabilities and, where errors are wanted, the dense output.
  void Attend() {
    const int64_t kv = KvHead(row_.head);
    double m = -std::numeric_limits<double>::infinity(), l = 0;
    for (int64_t s = 0; s < row_.keys; ++s) {
      double x = 0;
      for (int64_t c = 0; c < k_.dim; ++c)
        x += static_cast<double>(q_.at(row_.query, row_.head)[c]) * k_.Get(s, kv, c);
      row_.p[s] = x * scale_;
      m = std::max(m, row_.p[s]);
    }
    for (double& x : row_.p) {
      x = std::exp(x - m);
      l += x;
    }
    for (int64_t s = 0; s < row_.keys; ++s) {
      row_.p[s] /= l;
      if (o_.empty()) continue;
      for (int64_t x = 0; x < v_.dim; ++x) row_.dense[x] += row_.p[s] * v_.Get(s, kv, x);
    }
  }
  void Select() {
    for (const AttentionBranch& b : plan_.branches) {
      ForEachPair(plan_, b, row_.query, row_.head, [&](int64_t s, int table, double) {
        if (table > 0) return;
        row_.selected[s] = true;
        row_.mass += row_.p[s];
        ++row_.count;
      });
    }
  }

  void AddError(double largest) {
    double err = 0, norm = 0;
    for (int64_t x = 0; x < v_.dim; ++x) {
      const double e = o_.at(row_.query, row_.head)[x] - row_.dense[x];
      err += e * e;
      norm += row_.dense[x] * row_.dense[x];
    }
    out_.rel_error.Add(std::sqrt(err / std::max(norm, 1e-300)));
    // Rounding of fp32 sums is not the plan's doing: allow it before comparing with the bound.
    const double bound = std::max(0.0, 1 - row_.mass) * 2 * largest + 1e-5 * largest;
    out_.bound_slack.Add(row_.count > 0 ? std::sqrt(err) / bound : 0);
  }

  // The plan against an oracle that takes whole blocks by falling mass.
  void AddBlocks() {
    const int64_t blocks = (row_.keys + options_.block - 1) / options_.block;
    std::vector<double> mass(blocks, 0);
    std::vector<bool> touched(blocks, false);
    for (int64_t s = 0; s < row_.keys; ++s) {
      mass[s / options_.block] += row_.p[s];
      if (row_.selected[s]) touched[s / options_.block] = true;
    }
    std::vector<size_t> order(blocks);
    for (size_t b = 0; b < order.size(); ++b) order[b] = b;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return mass[a] > mass[b]; });

    double best = 0;  // mass of as many keys as the plan's, the last block in part
    int64_t left = row_.count;
    for (size_t b : order) {
      const int64_t size =
          std::min(options_.block, row_.keys - static_cast<int64_t>(b) * options_.block);
      if (left > 0)
        best += mass[b] * static_cast<double>(std::min(left, size)) / static_cast<double>(size);
      left -= size;
    }
    out_.regret.Add(best - row_.mass);

    const int64_t wanted = std::count(touched.begin(), touched.end(), true);
    int64_t hits = 0;
    for (int64_t r = 0; r < wanted; ++r) hits += touched[order[r]];
    if (wanted > 0) out_.block_recall.Add(static_cast<double>(hits) / static_cast<double>(wanted));
  }

  const AttentionPlan& plan_;
  const HeadsView<const float>& q_;
  const KvView &k_, &v_;
  const float scale_;
  const HeadsView<const float>& o_;
  const QualityOptions& options_;
  Row row_;
  PlanQuality out_;
};
}  // namespace

PlanQuality MeasurePlan(const AttentionPlan& plan, const HeadsView<const float>& q, const KvView& k,
                        const KvView& v, float scale, const HeadsView<const float>& o,
                        const QualityOptions& options) {
  return PlanMeter(plan, q, k, v, scale, o, options).Measure();
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
