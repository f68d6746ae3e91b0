#ifndef SLUICE_RUNTIME_LAB_COMPARE_TOTALS_H_
#define SLUICE_RUNTIME_LAB_COMPARE_TOTALS_H_
// What measured documents say of a policy: one by one, and several together.
#include <cmath>
#include <vector>

#include "sluice/policies/common/bootstrap.h"
#include "sluice/runtime/lab/compare/compare.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
inline double LogPerplexity(const CompareDocument& d) {
  return d.nll / static_cast<double>(d.counted);
}
inline double Accuracy(const CompareDocument& d) {
  return static_cast<double>(d.right) / static_cast<double>(d.asked);
}

// The mean of changes, one a document, and its interval: of one document there is none.
inline MeanInterval ChangeInterval(const std::vector<double>& changes, const CompareOptions& o) {
  MeanInterval m = FewInterval(changes, o.draws, o.seed);
  if (changes.size() < 2) m.low = m.high = NAN;
  return m;
}

// Quality over several documents.
struct Totals {
  double nll = 0, counted = 0, right = 0, asked = 0;
  double perplexity() const { return counted > 0 ? std::exp(nll / counted) : NAN; }
  double accuracy() const { return asked > 0 ? right / asked : NAN; }
  void Add(const CompareDocument& d) {
    nll += d.nll;
    counted += static_cast<double>(d.counted);
    right += static_cast<double>(d.right);
    asked += static_cast<double>(d.asked);
  }
};
// Work and time over several documents.
struct Work {
  double macs = 0, pairs = 0, causal = 0, kv = 0, weights = 0;
  double seconds = 0, plan = 0, attend = 0, predicted = 0;
  void Add(const CompareDocument& d) {
    macs += d.attention_macs + d.linear_macs;
    pairs += d.exact_pairs;
    causal += d.causal_pairs;
    kv += d.kv_bytes;
    weights += d.weight_bytes;
    seconds += d.total_s;
    plan += d.plan_s;
    attend += d.attend_s;
    predicted += d.predicted_attend_s;
  }
  double density() const { return causal > 0 ? pairs / causal : NAN; }
};
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_COMPARE_TOTALS_H_
