#ifndef SLUICE_RUNTIME_HOST_POLICY_H_
#define SLUICE_RUNTIME_HOST_POLICY_H_
// What to skip, as text: an attention router or a composition of them, or a learned method with its
// weights:
//   mean_pool:k=16    cascade(dense<=2048 | hisa:k=512)    flux_attention    ftp:weights=FILE
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sluice/runtime/host/engine.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// Where the bundled models, their trained weights and held-out tokens lie: $SLUICE_MODELS, or else
// examples/models of the sources that this was built from.
const std::string& ModelsFolder();
// "f32", "bf16" or "f16".
absl::StatusOr<DType> ReadCacheType(const std::string& text);
// The learned methods whose bundled weights fit the model, each once.
std::vector<std::string> LearnedPolicies(const Model& model);
// The policy with weights named. An attention method that cannot be made without them and names
// none gets those that are bundled for the model, where there are some, and their settings: of
// several the first whose settings are those that it gives, or else the first.
// Compositions name their own; all other texts come back as they are.
absl::StatusOr<std::string> WithBundledWeights(const std::string& policy, const Model& model);
// What a policy computes with besides its text: the content of the weights that it names or that
// are bundled for it, and of the plug-ins on the search path, whose routers it may name. Equal
// texts with equal fingerprints compute the same. NotFound where a file of weights is missing.
absl::StatusOr<uint64_t> PolicyFingerprint(const std::string& policy);
// `options` without routing of its own; the policy fills it in.
absl::StatusOr<std::unique_ptr<Engine>> CreateWithPolicy(const Model& model, EngineOptions options,
                                                         const std::string& policy);
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_POLICY_H_
