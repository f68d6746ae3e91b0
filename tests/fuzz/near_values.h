#ifndef SLUICE_TESTS_FUZZ_NEAR_VALUES_H_
#define SLUICE_TESTS_FUZZ_NEAR_VALUES_H_
// Values out of a fuzzer's bytes that are mostly what they should be. Records whose every field is
// arbitrary fall at the first check; these reach the last one, and what lies behind it.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <limits>

class NearValues {
 public:
  NearValues(const uint8_t* data, size_t size) : bytes_(data, size) {}

  // In [lo, hi]; lo once the bytes are used up.
  int64_t Within(int64_t lo, int64_t hi) {
    if (lo >= hi) return lo;
    return bytes_.ConsumeIntegralInRange<int64_t>(lo, hi);
  }
  // In [0, hi]; hi once the bytes are used up.
  int64_t UpTo(int64_t hi) { return hi - Within(0, hi); }
  // In [lo, hi] as a rule, else beside it or anywhere.
  int64_t Near(int64_t lo, int64_t hi) {
    const auto kind = bytes_.ConsumeIntegral<uint8_t>();
    if (kind < 240) return Within(lo, hi);
    if (kind < 246) return hi + 1;
    if (kind < 250) return lo - 1;
    return Odd();
  }
  int64_t Near(int64_t value) { return Near(value, value); }
  // As Near, of long arrays: a run of good values costs a byte.
  int64_t Steady(int64_t value) {
    if (left_ > 0) {
      --left_;
      return value;
    }
    left_ = bytes_.ConsumeIntegral<uint8_t>();
    if (left_ < 232) return value;
    const bool odd = left_ >= 244;
    left_ = 0;
    return odd ? Odd() : value + 1;
  }
  // Mostly small.
  float Number() {
    if (left_numbers_ > 0) {
      --left_numbers_;
      return 0.25f * static_cast<float>(left_numbers_ % 9) - 1;
    }
    left_numbers_ = bytes_.ConsumeIntegral<uint8_t>();
    if (left_numbers_ < 250) return 0.5f;
    const float kOdd[] = {
        std::numeric_limits<float>::quiet_NaN(),  std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(),  std::numeric_limits<float>::max(),
        std::numeric_limits<float>::denorm_min(), -1e30f};
    return bytes_.PickValueInArray(kOdd);
  }

 private:
  int64_t Odd() {
    const int64_t kOdd[] = {std::numeric_limits<int64_t>::min(),
                            std::numeric_limits<int64_t>::max(),
                            std::numeric_limits<int64_t>::max() / 4,
                            int64_t{1} << 32,
                            int64_t{1} << 31,
                            (int64_t{1} << 32) - 1,
                            -1,
                            0,
                            77,
                            255};
    const int64_t pick = bytes_.ConsumeIntegralInRange<int64_t>(0, std::size(kOdd));
    return pick < static_cast<int64_t>(std::size(kOdd)) ? kOdd[pick]
                                                        : bytes_.ConsumeIntegral<int64_t>();
  }
  FuzzedDataProvider bytes_;
  int left_ = 0;
  int left_numbers_ = 0;
};
#endif  // SLUICE_TESTS_FUZZ_NEAR_VALUES_H_
