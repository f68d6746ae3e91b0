#ifndef SLUICE_RUNTIME_SERVICE_LATENCY_HISTOGRAM_H_
#define SLUICE_RUNTIME_SERVICE_LATENCY_HISTOGRAM_H_
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Counts by magnitude: eight buckets a power of two, so a quantile is at most 12.5 % too high.
class LatencyHistogram {
 public:
  void Add(int64_t ns) {
    ++counts_[Bucket(ns < 1 ? 1 : static_cast<uint64_t>(ns))];
    ++total_;
  }
  // Upper end of the bucket that holds the quantile, ns; 0 when nothing was counted.
  double Quantile(double q) const {
    uint64_t need = static_cast<uint64_t>(q * static_cast<double>(total_));
    for (size_t i = 0; i < counts_.size(); ++i) {
      if (counts_[i] > need) return Upper(i);
      need -= counts_[i];
    }
    return 0;
  }
  uint64_t total() const { return total_; }

 private:
  static size_t Bucket(uint64_t v) {
    const int power = std::bit_width(v) - 1;
    const uint64_t part = power >= 3 ? (v >> (power - 3)) & 7 : (v << (3 - power)) & 7;
    return static_cast<size_t>(power) * 8 + part;
  }
  static double Upper(size_t i) {
    const double base = static_cast<double>(uint64_t{1} << (i / 8));
    return base * (1 + static_cast<double>(i % 8 + 1) / 8);
  }
  std::array<uint64_t, 64 * 8> counts_{};
  uint64_t total_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_LATENCY_HISTOGRAM_H_
