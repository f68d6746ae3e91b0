#ifndef SLUICE_RUNTIME_SERVICE_HEALTH_H_
#define SLUICE_RUNTIME_SERVICE_HEALTH_H_
// How each agent does right now: load, latency, breaker. Owned by the serving thread; times are
// arguments.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
struct BreakerSettings {
  int failures = 5;        // in a row open it
  double cooldown_s = 30;  // open for so long, then half-open
  int probes = 2;  // successes in half-open that close it, and decisions let through meanwhile
};
// `steady_s` never falls and decides how long; `unix_ms` is what decisions carry and decides which
// of them count.
struct Instant {
  double steady_s = 0;
  int64_t unix_ms = 0;
};

// A breaker hears of calls only that were decided in the state that it is in: a call decided before
// it opened neither keeps it open nor closes it.
class AgentHealth {
 public:
  enum class Breaker : uint8_t { kClosed, kOpen, kHalfOpen };
  struct State {
    Breaker breaker = Breaker::kClosed;
    int in_a_row = 0;
    int probing = 0;
    int probed = 0;
    double open_until = 0;  // steady
    int64_t since_ms = 0;   // of the breaker's state
    std::string why;        // the failure that opened it
    uint64_t chosen = 0;
    uint64_t ended = 0;
    uint64_t failures = 0;
    uint64_t graded = 0;
    double quality = 0;   // sum of graded outcomes
    double cost_usd = 0;  // sum
  };
  struct Call {
    bool failed = false;
    double latency_s = 0;
    double cost_usd = 0;
    absl::string_view why;
    int64_t decided_ms = 0;
  };

  explicit AgentHealth(size_t agents) : agents_(agents), live_(agents) {}
  const State& state(size_t a) const { return agents_[a]; }
  absl::Span<const AgentLive> live() const { return live_; }

  void Refresh(const BreakerSettings& s, const Instant& now) {
    // Outcomes that never come must not weigh forever.
    const double fade = std::exp(-std::max(0.0, now.steady_s - refreshed_) / kLoadFadeS);
    refreshed_ = now.steady_s;
    for (size_t a = 0; a < agents_.size(); ++a) {
      State& x = agents_[a];
      live_[a].load *= fade;
      if (x.breaker == Breaker::kOpen && now.steady_s >= x.open_until) {
        Enter(x, Breaker::kHalfOpen, now);
        x.probing = 0;
        x.probed = 0;
      }
      // A probe whose outcome is lost frees its place after another cooldown.
      if (x.breaker == Breaker::kHalfOpen && x.probing > 0 &&
          now.steady_s >= x.open_until + s.cooldown_s) {
        x.probing = 0;
        x.open_until = now.steady_s;
      }
    }
  }
  bool MayBeChosen(size_t a, const BreakerSettings& s) const {
    const State& x = agents_[a];
    return x.breaker == Breaker::kClosed ||
           (x.breaker == Breaker::kHalfOpen && x.probing < s.probes);
  }
  // Seconds until it lets somebody through; 0: it does.
  double FreeIn(size_t a, const BreakerSettings& s, const Instant& now) const {
    const State& x = agents_[a];
    if (MayBeChosen(a, s)) return 0;
    const double until = x.breaker == Breaker::kOpen ? x.open_until : x.open_until + s.cooldown_s;
    return std::max(0.0, until - now.steady_s);
  }

  void Chosen(size_t a) {
    ++agents_[a].chosen;
    live_[a].load += 1;
    if (agents_[a].breaker == Breaker::kHalfOpen) ++agents_[a].probing;
  }
  // A decision for it ended, whether or not it was called.
  void Released(size_t a) { live_[a].load = std::max(0.0, live_[a].load - 1); }
  void Called(size_t a, const Call& call, const BreakerSettings& s, const Instant& now) {
    State& x = agents_[a];
    if (call.latency_s > 0) {
      double& latency = live_[a].latency_s;
      latency = latency > 0 ? 0.9 * latency + 0.1 * call.latency_s : call.latency_s;
    }
    ++x.ended;
    x.cost_usd += call.cost_usd;
    x.failures += call.failed;
    if (call.decided_ms < x.since_ms || x.breaker == Breaker::kOpen) return;
    x.in_a_row = call.failed ? x.in_a_row + 1 : 0;
    if (call.failed && (x.breaker == Breaker::kHalfOpen || x.in_a_row >= s.failures)) {
      Enter(x, Breaker::kOpen, now);
      x.open_until = now.steady_s + s.cooldown_s;
      x.why = call.why.empty() ? "the call failed" : std::string(call.why.substr(0, kMostWhy));
    } else if (!call.failed && x.breaker == Breaker::kHalfOpen && ++x.probed >= s.probes) {
      Enter(x, Breaker::kClosed, now);
    }
  }
  void Graded(size_t a, double quality) {
    ++agents_[a].graded;
    agents_[a].quality += quality;
  }
  // Mean of its calls; 0 before the first.
  double MeanCost(size_t a) const {
    const State& x = agents_[a];
    return x.ended > 0 ? x.cost_usd / static_cast<double>(x.ended) : 0;
  }
  // What another team's agent was, as this one's.
  void Inherit(size_t a, const AgentHealth& from, size_t b) {
    agents_[a] = from.agents_[b];
    live_[a] = from.live_[b];
  }

 private:
  static constexpr double kLoadFadeS = 60;
  static constexpr size_t kMostWhy = 200;
  static void Enter(State& x, Breaker to, const Instant& now) {
    x.breaker = to;
    x.since_ms = now.unix_ms;
    x.in_a_row = 0;
  }
  std::vector<State> agents_;
  std::vector<AgentLive> live_;
  double refreshed_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HEALTH_H_
