#ifndef SLUICE_POLICIES_EXPERIMENT_ASSIGNMENT_H_
#define SLUICE_POLICIES_EXPERIMENT_ASSIGNMENT_H_
// Which arm of an experiment a unit (user, session, conversation) belongs to: weighted rendezvous
// hashing. The same unit gets the same arm for ever; an arm that is added or grows takes its units
// from all others alike, and moves nobody else.
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/hash.h"

SLUICE_BEGIN_NAMESPACE
class ArmAssignment {
 public:
  struct Arm {
    std::string name;
    double weight = 1;  // share of the exposed units, relative
  };
  // exposure: share of units that take part at all; raising it keeps those who took part. Everybody
  // else is in `control`.
  static absl::StatusOr<ArmAssignment> Create(std::vector<Arm> arms, absl::string_view salt,
                                              double exposure = 1, int control = 0) {
    if (arms.empty()) return absl::InvalidArgumentError("experiment: no arms");
    double sum = 0;
    for (size_t i = 0; i < arms.size(); ++i) {
      if (!(arms[i].weight >= 0 && std::isfinite(arms[i].weight))) {
        return absl::OutOfRangeError(
            absl::StrCat("arm '", arms[i].name, "': weight ", arms[i].weight, " is not >= 0"));
      }
      for (size_t k = 0; k < i; ++k) {
        if (arms[i].name == arms[k].name) {
          return absl::InvalidArgumentError(
              absl::StrCat("experiment: two arms are called '", arms[i].name, "'"));
        }
      }
      sum += arms[i].weight;
    }
    if (!(sum > 0)) return absl::InvalidArgumentError("experiment: all weights are 0");
    if (!(exposure >= 0 && exposure <= 1)) {
      return absl::OutOfRangeError(absl::StrCat("exposure ", exposure, " is outside [0, 1]"));
    }
    if (control < 0 || static_cast<size_t>(control) >= arms.size()) {
      return absl::OutOfRangeError(absl::StrCat("control arm ", control, " of ", arms.size()));
    }
    return ArmAssignment(std::move(arms), salt, exposure, control);
  }
  int Of(absl::string_view unit) const { return Taking(unit).value_or(control_); }
  // None: the unit does not take part. It gets the control, but tells nothing of it: counted in, a
  // growing exposure would mix times with few and many of one arm. O(arms).
  std::optional<int> Taking(absl::string_view unit) const {
    const uint64_t key = HashText(unit);
    if (RandomUniform({salt_, key, 0, 0, 0}) >= exposure_) return std::nullopt;
    int best = control_;
    double top = -INFINITY;
    for (size_t i = 0; i < arms_.size(); ++i) {
      // -ln(u) is exponential with rate 1; the largest weight / -ln(u) wins with probability weight
      // / sum.
      const double u = RandomUniform({salt_, key, names_[i], 1, 0});
      const double score = arms_[i].weight / -std::log1p(-u);
      if (arms_[i].weight > 0 && score > top) {
        best = static_cast<int>(i);
        top = score;
      }
    }
    return best;
  }
  const std::vector<Arm>& arms() const { return arms_; }

 private:
  ArmAssignment(std::vector<Arm> arms, absl::string_view salt, double exposure, int control)
      : arms_(std::move(arms)), salt_(HashText(salt)), exposure_(exposure), control_(control) {
    for (const Arm& a : arms_) names_.push_back(HashText(a.name));
  }
  std::vector<Arm> arms_;
  std::vector<uint64_t> names_;
  uint64_t salt_;
  double exposure_;
  int control_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_EXPERIMENT_ASSIGNMENT_H_
