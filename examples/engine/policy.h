#ifndef SLUICE_EXAMPLES_ENGINE_POLICY_H_
#define SLUICE_EXAMPLES_ENGINE_POLICY_H_
// What to skip, as text: an attention router or a composition of them, or a learned method with its
// weights:
//   mean_pool:k=16    cascade(dense<=2048 | hisa:k=512)    flux_attention    ftp:weights=FILE
#include <memory>
#include <string>
#include <vector>

#include "sluice/examples/engine/engine.h"

namespace engine {
// Where the bundled models, their trained weights and held-out tokens lie.
inline const std::string kModels = std::string(SLUICE_SOURCE_DIR) + "/examples/engine/models";
// "f32", "bf16" or "f16".
absl::StatusOr<sluice::DType> ReadCacheType(const std::string& text);
// The learned methods whose bundled weights fit the model.
std::vector<std::string> LearnedPolicies(const Model& model);
// `options` without routing of its own; the policy fills it in.
absl::StatusOr<std::unique_ptr<Engine>> CreateWithPolicy(const Model& model, EngineOptions options,
                                                         const std::string& policy);
}  // namespace engine
#endif  // SLUICE_EXAMPLES_ENGINE_POLICY_H_
