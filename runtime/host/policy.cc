#include "sluice/runtime/host/policy.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/method_keys.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/base/regular_file.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
// A method with weights in the models' folder: a line of its policies.txt.
struct Bundled {
  std::string text;  // "ftp:topk=1": what the policy means where it does not say otherwise
  std::string file;
  std::string name() const { return text.substr(0, text.find(':')); }
  absl::StatusOr<std::vector<AddedKey>> Settings() const {
    SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(text));
    std::vector<AddedKey> keys;
    for (const auto& [key, value] : spec.options)
      keys.push_back({std::string(key), std::string(value)});
    return keys;
  }
  // Whether a policy says the same of every setting that it gives.
  bool Agrees(const Spec& policy) const {
    const auto settings = Settings();
    if (!settings.ok()) return false;
    for (const AddedKey& s : *settings) {
      for (const auto& [key, value] : policy.options) {
        if (key == s.key && value != s.value) return false;
      }
    }
    return true;
  }
};
std::vector<Bundled> BundledPolicies() {
  std::vector<Bundled> all;
  std::ifstream list(ModelsFolder() + "/policies.txt");
  for (std::string line; std::getline(list, line);) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() != 2 || words[0][0] == '#') continue;
    all.push_back({words[0], absl::StrCat(ModelsFolder(), "/", words[1])});
  }
  return all;
}
// A method's name with its domain or without.
bool SameName(absl::string_view given, absl::string_view bare) {
  return given == bare || absl::EndsWith(given, absl::StrCat("/", bare));
}

// A file says under sluice.<method>.layers what it was trained for.
absl::StatusOr<Gguf> Weights(const std::string& file, const Model& model) {
  SLUICE_ASSIGN_OR_RETURN(Gguf w, Gguf::Open(file));
  for (const auto& [key, value] : w.values()) {
    if (!absl::StartsWith(key, "sluice.") || !absl::EndsWith(key, ".layers")) continue;
    const auto* layers = std::get_if<int64_t>(&value);
    if (layers != nullptr && *layers != model.shape.layers)
      return absl::InvalidArgumentError(absl::StrCat(
          file, " is trained for ", *layers, " layers, the model has ", model.shape.layers));
  }
  return w;
}
// Whether a bundled file is of this model: layers, heads and name, as far as both say.
bool Fits(const std::string& file, const Model& model) {
  const auto w = Weights(file, model);
  if (!w.ok()) return false;
  const auto name = w->Text("sluice.model");
  if (name.ok() && !model.name.empty() && *name != model.name) return false;
  const auto method = w->Text("sluice.method");
  if (!method.ok()) return true;
  const auto heads = w->Int(absl::StrCat("sluice.", *method, ".heads"));
  const auto kv_heads = w->Int(absl::StrCat("sluice.", *method, ".kv_heads"));
  return !kv_heads.ok() || (*kv_heads == model.shape.kv_heads && *heads == model.shape.heads);
}
absl::StatusOr<std::vector<double>> Schedule(const Gguf* w, const Model& model) {
  const uint64_t layers[] = {static_cast<uint64_t>(model.shape.layers)};
  static const std::map<std::string, GgufTensor> kNone;
  for (const auto& [name, tensor] : w == nullptr ? kNone : w->tensors()) {
    if (!absl::EndsWith(name, ".schedule")) continue;
    SLUICE_ASSIGN_OR_RETURN(const std::vector<float> schedule, w->ReadF32(name, layers));
    return std::vector<double>(schedule.begin(), schedule.end());
  }
  return absl::InvalidArgumentError(
      "needs the sparsity of every block: weights=FILE, with a tensor whose name ends in "
      ".schedule");
}

// A policy that names a router of items, taken apart.
struct ItemPolicy {
  const RouteTraits* traits = nullptr;
  std::string text;  // without `weights`
  std::optional<Gguf> weights;
};
absl::StatusOr<ItemPolicy> ReadItemPolicy(const RouterFactory& method, const Spec& spec,
                                          const Model& model) {
  ItemPolicy p;
  p.traits = &method.traits();
  p.text = std::string(method.name());
  std::string file;
  for (const auto& [key, value] : spec.options) {
    if (key == "weights") {
      file = std::string(value);
    } else {
      absl::StrAppend(&p.text, absl::StrContains(p.text, ':') ? "," : ":", key, "=", value);
    }
  }
  for (const Bundled& b : BundledPolicies()) {
    if (!SameName(method.name(), b.name())) continue;
    if (file.empty()) file = b.file;
    SLUICE_ASSIGN_OR_RETURN(const std::vector<AddedKey> keys, b.Settings());
    SLUICE_ASSIGN_OR_RETURN(p.text, WithKeys(p.text, method.Describe(), keys));
  }
  if (!file.empty()) {
    SLUICE_ASSIGN_OR_RETURN(p.weights, Weights(file, model));
  }
  return p;
}

absl::Status Use(const ItemPolicy& p, const Model& model, EngineOptions& o) {
  const RouteTraits& t = *p.traits;
  const Gguf* weights = p.weights ? &*p.weights : nullptr;
  if (t.domain == Domain::kLayer) {
    o.layers.router = p.text;
    o.layers.weights = weights;
  } else if (t.domain == Domain::kToken && t.combine == Combine::kWeightedSum) {
    o.tokens.router = p.text;
    o.tokens.weights = weights;
  } else if (t.domain == Domain::kToken && t.combine == Combine::kReplace) {
    o.pruning.router = p.text;
    o.pruning.weights = weights;
    SLUICE_ASSIGN_OR_RETURN(o.pruning.sparsity, Schedule(weights, model));
    o.quality_stride = 0;  // no plan to measure: the tokens are not there
  } else if (t.domain == Domain::kExpert) {
    o.experts.router = p.text;
    o.experts.weights = weights;
  } else {
    return absl::UnimplementedError(
        "this host routes attention, layers, tokens and experts, which this method does not");
  }
  return absl::OkStatus();
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
  for (const Bundled& b : BundledPolicies()) {
    const bool known = std::find(names.begin(), names.end(), b.name()) != names.end();
    if (!known && Fits(b.file, model)) names.push_back(b.name());
  }
  return names;
}

absl::StatusOr<std::string> WithBundledWeights(const std::string& policy, const Model& model) {
  const Registry& methods = InstalledMethods().registry;
  const auto spec = ParseSpec(policy);
  if (!spec.ok()) return policy;
  const auto method = methods.attention.Find(spec->name);
  if (!method.ok() || !absl::IsFailedPrecondition(methods.attention.Create(policy).status()))
    return policy;
  std::optional<Bundled> found;
  for (const Bundled& b : BundledPolicies()) {
    const bool agrees = b.Agrees(*spec);
    if (found.has_value() && !agrees) continue;
    if (!SameName((*method)->name(), b.name()) || !Fits(b.file, model)) continue;
    found = b;
    if (agrees) break;
  }
  if (!found.has_value()) return policy;
  SLUICE_ASSIGN_OR_RETURN(std::vector<AddedKey> keys, found->Settings());
  keys.push_back({"weights", found->file});
  return WithKeys(policy, (*method)->Describe(), keys);
}

absl::StatusOr<uint64_t> PolicyFingerprint(const std::string& policy) {
  std::vector<std::string> files = WeightFiles(policy);
  const std::string name = policy.substr(0, policy.find(':'));
  const bool bundled = files.empty();
  for (const Bundled& b : BundledPolicies()) {
    if (bundled && SameName(name, b.name())) files.push_back(b.file);
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
  const Registry& methods = InstalledMethods().registry;
  const auto spec = ParseSpec(policy);
  const auto method = spec.ok() ? methods.routers.Find(spec->name)
                                : absl::StatusOr<const RouterFactory*>(spec.status());
  if (method.ok() && !methods.attention.Find(spec->name).ok()) {
    const auto named = [&](const absl::Status& s) {
      return absl::Status(s.code(), absl::StrCat(spec->name, ": ", s.message()));
    };
    const auto p = ReadItemPolicy(**method, *spec, model);
    if (!p.ok()) return named(p.status());
    options.router = "dense";  // of attention, which this policy is not
    if (const absl::Status used = Use(*p, model, options); !used.ok()) return named(used);
    return Engine::Create(model, options);
  }
  SLUICE_ASSIGN_OR_RETURN(options.router, WithBundledWeights(policy, model));
  return Engine::Create(model, options);
}
}  // namespace host
SLUICE_END_NAMESPACE
