#include "sluice/examples/engine/policy.h"

#include "absl/strings/str_cat.h"
#include "sluice/runtime/weights/gguf.h"

namespace engine {
namespace {
// The schedule of block sparsities is in the file; exactly its budget is computed.
absl::Status UsePruning(const sluice::Gguf& w, TokenPruning::By by, EngineOptions& o) {
  const uint64_t layers[] = {static_cast<uint64_t>(*w.Int("sluice.ftp.layers"))};
  SLUICE_ASSIGN_OR_RETURN(const std::vector<float> schedule, w.ReadF32("ftp.schedule", layers));
  o.pruning.sparsity.assign(schedule.begin(), schedule.end());
  o.pruning.by = by;
  o.pruning.weights = &w;
  o.pruning.topk = true;
  o.quality_stride = 0;  // no plan to measure: the tokens are not there
  return absl::OkStatus();
}
struct Learned {
  const char *name, *file, *layers_key;
  absl::Status (*use)(const sluice::Gguf& weights, EngineOptions& o);
};
constexpr Learned kLearned[] = {
    {"flux_attention", "/flux_attention-s1.gguf", "sluice.flux.layers",
     [](const sluice::Gguf& w, EngineOptions& o) {
       o.layers.weights = &w;
       return absl::OkStatus();
     }},
    {"informed_routing", "/informed_routing-lff25-s1.gguf", "sluice.informed.layers",
     [](const sluice::Gguf& w, EngineOptions& o) {
       o.tokens.weights = &w;
       o.tokens.gate = TokenRouting::Gate::kLearned;
       return absl::OkStatus();
     }},
    {"ftp", "/ftp-full30-s1.gguf", "sluice.ftp.layers",
     [](const sluice::Gguf& w, EngineOptions& o) {
       return UsePruning(w, TokenPruning::By::kLearned, o);
     }},
    {"ftp_static", "/ftp-full30-s1.gguf", "sluice.ftp.layers",
     [](const sluice::Gguf& w, EngineOptions& o) {
       return UsePruning(w, TokenPruning::By::kStatic, o);
     }},
};
absl::StatusOr<sluice::Gguf> Weights(const Learned& l, const std::string& file,
                                     const Model& model) {
  SLUICE_ASSIGN_OR_RETURN(sluice::Gguf w, sluice::Gguf::Open(file));
  SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int(l.layers_key));
  if (layers != model.shape.layers)
    return absl::InvalidArgumentError(absl::StrCat(file, " is trained for ", layers,
                                                   " layers, the model has ", model.shape.layers));
  return w;
}
}  // namespace

absl::StatusOr<sluice::DType> ReadCacheType(const std::string& s) {
  for (sluice::DType t : {sluice::DType::kF32, sluice::DType::kBF16, sluice::DType::kF16}) {
    if (s == sluice::DTypeName(t)) return t;
  }
  return absl::InvalidArgumentError(absl::StrCat("cache type '", s, "'; allowed: f32, bf16, f16"));
}

std::vector<std::string> LearnedPolicies(const Model& model) {
  std::vector<std::string> names;
  for (const Learned& l : kLearned) {
    if (Weights(l, kModels + l.file, model).ok()) names.push_back(l.name);
  }
  return names;
}

absl::StatusOr<std::unique_ptr<Engine>> CreateWithPolicy(const Model& model, EngineOptions options,
                                                         const std::string& policy) {
  for (const Learned& l : kLearned) {
    if (policy.substr(0, policy.find(':')) != l.name) continue;
    SLUICE_ASSIGN_OR_RETURN(const sluice::Spec spec, sluice::ParseSpec(policy));
    std::string file = kModels + l.file;
    for (const auto& [key, value] : spec.options) {
      if (key != "weights")
        return absl::InvalidArgumentError(
            absl::StrCat(l.name, ": unknown key '", key, "'; known: weights"));
      file = std::string(value);
    }
    auto w = Weights(l, file, model);
    if (!w.ok())
      return absl::Status(w.status().code(), absl::StrCat(l.name, ": ", w.status().message()));
    SLUICE_RETURN_IF_ERROR(l.use(*w, options));
    return Engine::Create(model, options);
  }
  options.router = policy;
  return Engine::Create(model, options);
}
}  // namespace engine
