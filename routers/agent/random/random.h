#ifndef SLUICE_ROUTERS_AGENT_RANDOM_RANDOM_H_
#define SLUICE_ROUTERS_AGENT_RANDOM_RANDOM_H_
// Every open agent of a stage with the same probability: the control that a learned router must
// beat.
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class Random : public Unlearned {
 public:
  static constexpr absl::string_view kName = "random";
  struct Config {
    int64_t seed = 1;
    template <class V>
    void VisitFields(V&& v) {
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the draws");
    }
  };
  static absl::StatusOr<Random> Create(const Config& c) { return Random(c); }
  absl::Status Run(const Plan& p, absl::Span<const double>, const AgentRequest& q, AgentDecision& d,
                   AgentTrace* trace) const {
    return Walk(p.layout, static_cast<uint64_t>(config_.seed), q, d, trace,
                [](const Stage& s, Weights& w) { std::fill_n(w.p.begin(), s.size, 1.0); });
  }

 private:
  explicit Random(const Config& c) : config_(c) {}
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_RANDOM_RANDOM_H_
