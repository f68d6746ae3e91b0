#include "sluice/runtime/host/policy.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/base/regular_file.h"
#include "sluice/runtime/dynload/plugin_library.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
// The schedule of block sparsities is in the file; exactly its budget is computed.
absl::Status UsePruning(const Gguf& w, TokenPruning::By by, EngineOptions& o) {
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
  absl::Status (*use)(const Gguf& weights, EngineOptions& o);
};
constexpr Learned kLearned[] = {
    {"flux_attention", "/flux_attention-s1.gguf", "sluice.flux.layers",
     [](const Gguf& w, EngineOptions& o) {
       o.layers.weights = &w;
       return absl::OkStatus();
     }},
    {"informed_routing", "/informed_routing-lff25-s1.gguf", "sluice.informed.layers",
     [](const Gguf& w, EngineOptions& o) {
       o.tokens.weights = &w;
       o.tokens.gate = TokenRouting::Gate::kLearned;
       return absl::OkStatus();
     }},
    {"ftp", "/ftp-full30-s1.gguf", "sluice.ftp.layers",
     [](const Gguf& w, EngineOptions& o) { return UsePruning(w, TokenPruning::By::kLearned, o); }},
    {"ftp_static", "/ftp-full30-s1.gguf", "sluice.ftp.layers",
     [](const Gguf& w, EngineOptions& o) { return UsePruning(w, TokenPruning::By::kStatic, o); }},
};
absl::StatusOr<Gguf> Weights(const Learned& l, const std::string& file, const Model& model) {
  SLUICE_ASSIGN_OR_RETURN(Gguf w, Gguf::Open(file));
  SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int(l.layers_key));
  if (layers != model.shape.layers)
    return absl::InvalidArgumentError(absl::StrCat(file, " is trained for ", layers,
                                                   " layers, the model has ", model.shape.layers));
  return w;
}
// The files that a policy names by weights=, wherever in a composition.
std::vector<std::string> WeightFiles(const std::string& policy) {
  static constexpr char kKey[] = "weights=";
  std::vector<std::string> files;
  for (size_t at = policy.find(kKey); at != std::string::npos; at = policy.find(kKey, at)) {
    const bool is_key = at > 0 && (policy[at - 1] == ':' || policy[at - 1] == ',');
    at += sizeof(kKey) - 1;
    const size_t end = std::min(policy.find_first_of(",|)", at), policy.size());
    const absl::string_view file(policy.data() + at, end - at);
    if (is_key) files.emplace_back(absl::StripAsciiWhitespace(file));
  }
  return files;
}
}  // namespace

const std::string& ModelsFolder() {
  static const std::string folder = [] {
    const char* given = std::getenv("SLUICE_MODELS");
    return given != nullptr ? std::string(given) : SLUICE_SOURCE_DIR "/examples/models";
  }();
  return folder;
}

absl::StatusOr<DType> ReadCacheType(const std::string& s) {
  for (DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (s == DTypeName(t)) return t;
  }
  return absl::InvalidArgumentError(absl::StrCat("cache type '", s, "'; allowed: f32, bf16, f16"));
}

std::vector<std::string> LearnedPolicies(const Model& model) {
  std::vector<std::string> names;
  for (const Learned& l : kLearned) {
    if (Weights(l, ModelsFolder() + l.file, model).ok()) names.push_back(l.name);
  }
  return names;
}

absl::StatusOr<uint64_t> PolicyFingerprint(const std::string& policy) {
  std::vector<std::string> files = WeightFiles(policy);
  const std::string name = policy.substr(0, policy.find(':'));
  for (const Learned& l : kLearned) {
    if (name == l.name && files.empty()) files.push_back(ModelsFolder() + l.file);
  }
  for (const std::string& folder : PluginFolders()) {
    std::vector<std::string> plugins;
    std::error_code error;
    for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
         it.increment(error)) {
      if (it->path().extension() == ".so" && it->is_regular_file(error))
        plugins.push_back(it->path().string());
    }
    std::sort(plugins.begin(), plugins.end());
    files.insert(files.end(), plugins.begin(), plugins.end());
  }
  TextHash all;
  for (const std::string& file : files) {
    SLUICE_ASSIGN_OR_RETURN(const uint64_t content, HashFile(file));
    all.Add(absl::StrCat(content, ";"));
  }
  return all.value();
}

absl::StatusOr<std::unique_ptr<Engine>> CreateWithPolicy(const Model& model, EngineOptions options,
                                                         const std::string& policy) {
  for (const Learned& l : kLearned) {
    if (policy.substr(0, policy.find(':')) != l.name) continue;
    SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(policy));
    std::string file = ModelsFolder() + l.file;
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
}  // namespace host
SLUICE_END_NAMESPACE
