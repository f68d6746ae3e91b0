#ifndef SLUICE_RUNTIME_LAB_EVALUATE_STATISTICS_H_
#define SLUICE_RUNTIME_LAB_EVALUATE_STATISTICS_H_
// What every evaluation prints: rows of a table, means, spreads, medians, verdicts and progress.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "sluice/api/version.h"
#include "sluice/policies/common/quantile.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
constexpr int kSeeds = 3;  // trained weights a method

// Progress on one line of stderr; PrintRow clears it.
inline void Note(const std::string& what) { std::fprintf(stderr, "\r%-70s", what.c_str()); }
inline void ClearNote() { std::fprintf(stderr, "\r%70s\r", ""); }

// A line of a table, seen as soon as it is known.
template <class... Args>
void PrintRow(const absl::FormatSpec<Args...>& format, const Args&... args) {
  ClearNote();
  absl::PrintF(format, args...);
  std::fflush(stdout);
}

inline double Mean(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) /
         static_cast<double>(std::max<size_t>(1, x.size()));
}
// Half of Student's 95 % interval of the mean.
inline double Margin(const std::vector<double>& x) {
  const MeanInterval i = StudentInterval(x);
  return (i.high - i.low) / 2;
}
inline std::string MeanAndMargin(const std::vector<double>& x, int digits) {
  return absl::StrFormat("%.*f +- %.*f", digits, Mean(x), digits, Margin(x));
}
constexpr char kMarginNote[] = "+-: Student's 95 % interval of the mean";
inline double Median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x.empty() ? 0 : x[x.size() / 2];
}
inline const char* Verdict(bool met) { return met ? "met" : "MISSED"; }

// Ranks from 0; equal values get their mean rank.
inline std::vector<double> Ranks(const std::vector<float>& x) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
  std::vector<double> rank(x.size());
  for (size_t i = 0; i < order.size();) {
    size_t end = i;
    while (end < order.size() && x[order[end]] == x[order[i]]) ++end;
    for (size_t k = i; k < end; ++k) rank[order[k]] = static_cast<double>(i + end - 1) / 2;
    i = end;
  }
  return rank;
}
inline double Spearman(const std::vector<float>& a, const std::vector<float>& b) {
  const std::vector<double> x = Ranks(a), y = Ranks(b);
  const double mx = Mean(x), my = Mean(y);
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mx) * (y[i] - my);
    xx += (x[i] - mx) * (x[i] - mx);
    yy += (y[i] - my) * (y[i] - my);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
}
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_EVALUATE_STATISTICS_H_
