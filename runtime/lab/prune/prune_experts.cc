#include "sluice/runtime/lab/prune/prune_experts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/pruners/common/select.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/lab/prune/slices.h"
#include "sluice/runtime/lab/prune/windows.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
absl::StatusOr<std::vector<std::vector<double>>> ExpertUse(
    const host::Model& model, const std::vector<int32_t>& tokens, int64_t window, int threads,
    const std::function<void(int64_t)>& progress) {
  if (tokens.empty()) return absl::InvalidArgumentError("no tokens to measure experts on");
  SLUICE_RETURN_IF_ERROR(CheckVocabulary(model, tokens));
  host::EngineOptions options;
  options.threads = threads;
  options.max_tokens = window;
  SLUICE_ASSIGN_OR_RETURN(const auto engine, host::Engine::Create(model, options));

  const host::ModelShape& m = model.shape;
  std::vector<std::vector<double>> use(static_cast<size_t>(m.layers));
  for (std::vector<double>& layer : use) layer.resize(static_cast<size_t>(m.experts));
  const int64_t n = std::ssize(tokens);
  for (int64_t at = 0; at < n; at += window) {
    const int64_t end = std::min(n, at + window);
    engine->Reset();
    SLUICE_RETURN_IF_ERROR(engine->Feed({tokens.begin() + at, tokens.begin() + end}, end));
    for (int64_t layer = 0; layer < m.layers; ++layer) {
      for (int64_t e = 0; e < m.experts; ++e)
        use[layer][e] += static_cast<double>(engine->expert_rows(layer, e));
    }
    if (progress) progress(end);
  }
  return use;
}

absl::StatusOr<std::vector<std::vector<int64_t>>> ExpertsThatStay(
    const std::vector<std::vector<double>>& use, double ratio, int64_t experts_used) {
  const auto experts = use.empty() ? 0 : std::ssize(use[0]);
  const PruneTarget target = {.ratio = ratio};
  const int64_t stay = ratio >= 0 && ratio <= 1 ? pruning::Stay(target, experts) : -1;
  if (stay < experts_used || stay >= experts)
    return absl::InvalidArgumentError(
        absl::StrCat("a share of ", ratio, " of ", experts,
                     " experts a layer; allowed: a share by which at least one goes and ",
                     experts_used, " stay, as many as a token uses"));
  std::vector<std::vector<int64_t>> list;
  std::vector<int64_t> order;
  std::vector<uint8_t> kept;
  for (const std::vector<double>& layer : use) {
    pruning::Keep(layer, target, {}, order, kept);
    std::vector<int64_t>& of_layer = list.emplace_back();
    for (int64_t e = 0; e < experts; ++e) {
      if (kept[static_cast<size_t>(e)] != 0) of_layer.push_back(e);
    }
  }
  return list;
}

absl::StatusOr<GgufWriter> WithExperts(const Gguf& file,
                                       const std::vector<std::vector<int64_t>>& stay) {
  if (stay.empty()) return absl::InvalidArgumentError("no layers to keep experts of");
  GgufWriter out;
  out.CopyValues(file);
  SLUICE_RETURN_IF_ERROR(out.Replace("llama.expert_count", std::ssize(stay[0])));

  // An expert is the last dimension's slice, of the gate a row.
  std::map<std::string, const std::vector<int64_t>*> of_tensor;
  for (size_t layer = 0; layer < stay.size(); ++layer) {
    if (stay[layer].size() != stay[0].size())
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " keeps ", stay[layer].size(),
                                                     " experts and layer 0 ", stay[0].size(),
                                                     "; allowed: as many in each"));
    for (const char* name : {"ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"})
      of_tensor[absl::StrCat("blk.", layer, ".", name, ".weight")] = &stay[layer];
  }
  for (const std::string& name : file.tensor_names()) {
    const GgufTensor& t = **file.Tensor(name);
    const auto cut = of_tensor.find(name);
    if (cut == of_tensor.end()) {
      out.Copy(t);
      continue;
    }
    for (int64_t e : *cut->second) {
      if (e < 0 || static_cast<uint64_t>(e) >= t.shape.back())
        return absl::InvalidArgumentError(
            absl::StrCat(name, " has no expert ", e, " of ", t.shape.back()));
    }
    AddSlices(t, *cut->second, out);
  }
  return out;
}
}  // namespace lab
SLUICE_END_NAMESPACE
