#ifndef SLUICE_RUNTIME_LAB_CALIBRATE_INFORMED_H_
#define SLUICE_RUNTIME_LAB_CALIBRATE_INFORMED_H_
// Informed Routing for a model without gradient descent: forecasters by reduced-rank ridge
// regression on the units' dense inputs and outputs, routers by regressing the logarithm of the
// forecast error on the same inputs, one threshold over all units for the wanted sparsity. Our own
// substitute for the published training (arXiv 2510.13831).
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct CalibrateOptions {
  int64_t rank = 64;
  double ridge = 1e-3;     // of the mean variance of the inputs
  double sparsity = 0.25;  // share of the rows of all units that is approximated
  int64_t window = 2048;   // tokens a sequence
  int threads = 0;
};
// GGUF bytes with the keys of informed_routing. Needs more tokens than the model is wide. O(units
// tokens width^2).
absl::StatusOr<std::string> CalibrateInformedRouting(
    const host::Model& model, const std::vector<int32_t>& tokens, const CalibrateOptions& options,
    const std::function<void(const std::string&)>& progress = {});
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_CALIBRATE_INFORMED_H_
