#ifndef SLUICE_RUNTIME_SERVICE_HEALTH_H_
#define SLUICE_RUNTIME_SERVICE_HEALTH_H_
// How each agent does right now: load, latency, breaker, spending. Owned by the serving thread;
// time is an argument.
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
struct BreakerSettings {
  int failures = 5;        // in a row open it
  double cooldown_s = 30;  // open for so long, then half-open
  int probes = 2;  // successes in half-open that close it, and decisions let through meanwhile
};
class AgentHealth {
 public:
  enum class Breaker : uint8_t { kClosed, kOpen, kHalfOpen };
  explicit AgentHealth(size_t agents)
      : agents_(agents), live_(agents), blocked_(agents, Block::kNone) {}

  // What routers read. `Refresh` brings both up to `now` (seconds, never falling).
  absl::Span<const AgentLive> live() const { return live_; }
  absl::Span<const Block> blocked() const { return blocked_; }
  bool any_blocked() const { return any_blocked_; }
  void Refresh(const BreakerSettings& s, absl::Span<const double> budgets, double now) {
    any_blocked_ = false;
    const double fade = std::exp(-std::max(0.0, now - refreshed_) / kLoadFadeS);
    refreshed_ = now;
    for (size_t a = 0; a < agents_.size(); ++a) {
      State& x = agents_[a];
      live_[a].load *= fade;  // outcomes that never come must not weigh forever
      if (x.breaker == Breaker::kOpen && now >= x.open_until) {
        x.breaker = Breaker::kHalfOpen;
        x.probing = x.probed = 0;
      }
      // A probe whose outcome is lost frees its place after another cooldown.
      if (x.breaker == Breaker::kHalfOpen && x.probing > 0 && now >= x.open_until + s.cooldown_s) {
        x.probing = 0;
        x.open_until = now;
      }
      x.over_budget = a < budgets.size() && budgets[a] > 0 && Spent(a, now) >= budgets[a];
      const bool unhealthy =
          x.breaker == Breaker::kOpen || (x.breaker == Breaker::kHalfOpen && x.probing >= s.probes);
      blocked_[a] = unhealthy       ? Block::kUnhealthy
                    : x.over_budget ? Block::kOverBudget
                                    : Block::kNone;
      any_blocked_ = any_blocked_ || blocked_[a] != Block::kNone;
    }
  }

  void Chosen(size_t a, const BreakerSettings& s) {
    ++agents_[a].chosen;
    live_[a].load += 1;
    if (agents_[a].breaker == Breaker::kHalfOpen && ++agents_[a].probing >= s.probes) {
      blocked_[a] = Block::kUnhealthy;
      any_blocked_ = true;
    }
  }
  // One call of an agent ended.
  void Ended(size_t a, bool failed, double latency_s, double quality, double cost_usd,
             const BreakerSettings& s, double now) {
    State& x = agents_[a];
    live_[a].load = std::max(0.0, live_[a].load - 1);
    if (latency_s > 0)
      live_[a].latency_s =
          live_[a].latency_s > 0 ? 0.9 * live_[a].latency_s + 0.1 * latency_s : latency_s;
    ++x.ended;
    x.quality += quality;
    x.cost_usd += cost_usd;
    Spend(a, cost_usd, now);
    if (failed) {
      ++x.failures;
      ++x.in_a_row;
      if (x.breaker == Breaker::kHalfOpen || x.in_a_row >= s.failures) {
        x.breaker = Breaker::kOpen;
        x.open_until = now + s.cooldown_s;
        blocked_[a] = Block::kUnhealthy;
        any_blocked_ = true;
      }
    } else {
      x.in_a_row = 0;
      if (x.breaker == Breaker::kHalfOpen && ++x.probed >= s.probes) x.breaker = Breaker::kClosed;
    }
  }

  struct State {
    Breaker breaker = Breaker::kClosed;
    int in_a_row = 0, probing = 0, probed = 0;
    double open_until = 0;
    bool over_budget = false;
    uint64_t chosen = 0, ended = 0, failures = 0;
    double quality = 0, cost_usd = 0;  // sums
    std::array<double, 60> minutes{};  // USD of the last hour
    int64_t minute = 0;
  };
  const State& state(size_t a) const { return agents_[a]; }

 private:
  static constexpr double kLoadFadeS = 60;
  void Advance(State& x, double now) {
    const auto minute = static_cast<int64_t>(now / 60);
    for (int64_t m = std::max(x.minute + 1, minute - 59); m <= minute; ++m) x.minutes[m % 60] = 0;
    x.minute = std::max(x.minute, minute);
  }
  void Spend(size_t a, double usd, double now) {
    Advance(agents_[a], now);
    agents_[a].minutes[agents_[a].minute % 60] += usd;
  }
  double Spent(size_t a, double now) {
    Advance(agents_[a], now);
    double sum = 0;
    for (double m : agents_[a].minutes) sum += m;
    return sum;
  }
  std::vector<State> agents_;
  std::vector<AgentLive> live_;
  std::vector<Block> blocked_;
  bool any_blocked_ = false;
  double refreshed_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HEALTH_H_
