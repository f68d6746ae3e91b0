#ifndef SLUICE_RUNTIME_SERVICE_EXPERIMENT_H_
#define SLUICE_RUNTIME_SERVICE_EXPERIMENT_H_
// The experiment of a running server: assignment, what each arm's outcomes say, and shadows. Owned by the serving
// thread.
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "sluice/policies/experiment/assignment.h"
#include "sluice/policies/experiment/sequential.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/service/config.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
class Experiment {
 public:
  // Keeps what was counted when the experiment is still the same.
  void Adopt(const v1::ExperimentConfig& config) {
    if (config.SerializeAsString() == config_.SerializeAsString()) return;
    config_ = config;
    assignment_.reset(), arms_.clear(), shadows_.clear();
    if (config.name().empty()) return;
    absl::StatusOr<ArmAssignment> made = MakeAssignment(config);
    if (!made.ok()) return;  // settings were checked before
    assignment_ = *std::move(made);
    for (size_t i = 0; i < assignment_->arms().size(); ++i)
      arms_.emplace_back(config.effect() > 0 ? config.effect() : 0.05);
    for (const std::string& name : config.shadow()) shadows_.push_back({name, 0, 0});
    tag_ = static_cast<uint32_t>(HashText(config.name()) & 0xFF) << 24;
  }
  bool running() const { return assignment_.has_value(); }
  // Arm of a unit. Counts it.
  int Assign(absl::string_view unit) {
    const int arm = assignment_->Of(unit);
    auto& units = arms_[static_cast<size_t>(arm)].units;
    if (units.size() < (size_t{1} << 20)) units.insert(HashText(unit));
    return arm;
  }
  const std::string& policy(int arm) const { return assignment_->arms()[static_cast<size_t>(arm)].name; }
  // What a receipt keeps beside the policy's number: which arm of which experiment.
  uint32_t Mark(int arm) const { return tag_ | static_cast<uint32_t>(arm + 1) << 16; }
  void Learn(uint32_t mark, double quality, double cost) {
    const uint32_t arm = (mark >> 16 & 0xFF) - 1;
    if (!running() || (mark & 0xFF000000u) != tag_ || arm >= arms_.size()) return;
    arms_[arm].quality.Add(quality);
    arms_[arm].cost.Add(cost);
    for (size_t i = arm == 0 ? 1 : arm; i < (arm == 0 ? arms_.size() : arm + 1); ++i) {
      arms_[i].test.Update(DifferenceOfMeans(arms_[0].quality, arms_[i].quality));
    }
  }
  struct Shadow {
    std::string policy;
    uint64_t decisions, same;
  };
  std::vector<Shadow>& shadows() { return shadows_; }

  void Report(v1::ExperimentResponse& out) const {
    out.set_name(config_.name());
    std::vector<int64_t> counts;
    std::vector<double> weights;
    for (size_t i = 0; i < arms_.size(); ++i) {
      const Arm& a = arms_[i];
      const Difference d = DifferenceOfMeans(arms_[0].quality, a.quality);
      v1::ArmResult& r = *out.add_arms();
      r.set_policy(assignment_->arms()[i].name), r.set_weight(assignment_->arms()[i].weight);
      r.set_units(a.units.size()), r.set_outcomes(static_cast<uint64_t>(a.quality.count()));
      r.set_quality(a.quality.mean()), r.set_cost_usd(a.cost.mean());
      r.set_gain(i == 0 ? 0 : d.value), r.set_half_interval(i == 0 ? 0 : SequenceHalfWidth(d, 0.05));
      r.set_p(a.test.p());
      counts.push_back(static_cast<int64_t>(a.units.size())), weights.push_back(assignment_->arms()[i].weight);
    }
    // Units that do not take part count for the control, so only a full exposure can be checked.
    const bool full = !config_.has_exposure() || config_.exposure() >= 1;
    out.set_sample_ratio_p(full && !counts.empty() ? SampleRatioP(counts, weights) : 1);
    out.set_readable(out.sample_ratio_p() >= 0.001);
    for (const Shadow& s : shadows_) {
      v1::ShadowResult& r = *out.add_shadows();
      r.set_policy(s.policy), r.set_decisions(s.decisions), r.set_same(s.same);
    }
  }

 private:
  struct Arm {
    explicit Arm(double effect) : test(effect) {}
    Moments quality, cost;
    MixtureTest test;
    std::unordered_set<uint64_t> units;
  };
  v1::ExperimentConfig config_;
  std::optional<ArmAssignment> assignment_;
  std::vector<Arm> arms_;
  std::vector<Shadow> shadows_;
  uint32_t tag_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_EXPERIMENT_H_
