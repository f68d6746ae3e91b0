#ifndef SLUICE_RUNTIME_SERVICE_RATE_LIMIT_H_
#define SLUICE_RUNTIME_SERVICE_RATE_LIMIT_H_
// Token buckets by client.
#include <algorithm>
#include <string>
#include <unordered_map>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class RateLimit {
 public:
  // `per_s` 0: no limit.
  void Set(double per_s, double burst) {
    per_s_ = per_s;
    burst_ = burst;
  }
  double per_s() const { return per_s_; }
  // Takes a token; false: there is none.
  bool Allows(const std::string& client, double now) {
    if (per_s_ <= 0) return true;
    Bucket& b = buckets_.try_emplace(client, Bucket{burst_, now}).first->second;
    b.tokens = std::min(burst_, b.tokens + per_s_ * (now - b.at));
    b.at = now;
    if (b.tokens < 1) return false;
    b.tokens -= 1;
    return true;
  }
  // Until a client without tokens has one.
  double retry_after_s() const { return per_s_ > 0 ? 1 / per_s_ : 0; }
  // Forgets clients whose bucket is full again: they lose nothing.
  void Forget(double now) {
    if (buckets_.size() <= kMany) return;
    std::erase_if(buckets_, [&](const auto& entry) {
      return entry.second.tokens + per_s_ * (now - entry.second.at) >= burst_;
    });
  }

 private:
  static constexpr size_t kMany = 4096;
  struct Bucket {
    double tokens = 0;
    double at = 0;
  };
  double per_s_ = 0;
  double burst_ = 0;
  std::unordered_map<std::string, Bucket> buckets_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_RATE_LIMIT_H_
