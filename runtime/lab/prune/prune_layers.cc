#include "sluice/runtime/lab/prune/prune_layers.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/pruners/common/select.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/lab/prune/windows.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
double Cosine(const float* a, const float* b, int64_t n) {
  double ab = 0;
  double aa = 0;
  double bb = 0;
  for (int64_t i = 0; i < n; ++i) {
    ab += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    aa += static_cast<double>(a[i]) * static_cast<double>(a[i]);
    bb += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  const double both = std::sqrt(aa) * std::sqrt(bb);
  return both == 0 ? 0 : ab / both;
}
}  // namespace

absl::StatusOr<std::vector<double>> LayerInfluence(const host::Model& model,
                                                   const std::vector<int32_t>& tokens,
                                                   int64_t window, int threads,
                                                   const std::function<void(double)>& progress) {
  if (tokens.empty()) return absl::InvalidArgumentError("no tokens to measure layers on");
  SLUICE_RETURN_IF_ERROR(CheckVocabulary(model, tokens));
  host::EngineOptions options;
  options.threads = threads;
  options.max_tokens = window;
  SLUICE_ASSIGN_OR_RETURN(const auto engine, host::Engine::Create(model, options));

  const int64_t width = model.shape.width;
  Windows windows(model, tokens, window);
  std::vector<double> influence;
  std::vector<float> before;
  for (int64_t layer = 0; layer < model.shape.layers; ++layer) {
    double sum = 0;
    for (int64_t w = 0; w < windows.count(); ++w) {
      float* x = windows.states(w);
      before.assign(x, x + windows.floats(w));
      SLUICE_RETURN_IF_ERROR(engine->RunLayerAlone(layer, windows.length(w), x));
      for (int64_t t = 0; t < windows.length(w); ++t)
        sum += Cosine(before.data() + t * width, x + t * width, width);
    }
    influence.push_back(1 - sum / static_cast<double>(tokens.size()));
    if (progress) progress(static_cast<double>(layer + 1));
  }
  return influence;
}

absl::StatusOr<std::vector<int64_t>> LayersThatStay(const std::vector<double>& influence,
                                                    double ratio) {
  const auto layers = static_cast<int64_t>(influence.size());
  const PruneTarget target = {.ratio = ratio};
  const int64_t stay = ratio >= 0 && ratio <= 1 ? pruning::Stay(target, layers) : -1;
  if (stay < 1 || stay >= layers)
    return absl::InvalidArgumentError(
        absl::StrCat("a share of ", ratio, " of ", layers,
                     " layers; allowed: a share by which at least one goes and one stays, 1/",
                     layers, " to below 1"));
  std::vector<int64_t> order;
  std::vector<uint8_t> kept;
  pruning::Keep(influence, target, {}, order, kept);
  std::vector<int64_t> list;
  for (int64_t l = 0; l < layers; ++l) {
    if (kept[static_cast<size_t>(l)] != 0) list.push_back(l);
  }
  return list;
}

absl::StatusOr<GgufWriter> WithLayers(const Gguf& file, const std::vector<int64_t>& stay) {
  GgufWriter out;
  out.CopyValues(file);
  SLUICE_RETURN_IF_ERROR(out.Replace("llama.block_count", std::ssize(stay)));
  for (const std::string& name : file.tensor_names()) {
    GgufTensor t = **file.Tensor(name);
    const size_t dot = name.find('.', 4);
    int64_t layer = 0;
    const bool of_layer = absl::StartsWith(name, "blk.") && dot != std::string::npos &&
                          absl::SimpleAtoi(name.substr(4, dot - 4), &layer);
    if (of_layer) {
      const auto at = std::find(stay.begin(), stay.end(), layer);
      if (at == stay.end()) continue;
      t.name = absl::StrCat("blk.", at - stay.begin(), name.substr(dot));
    }
    out.Copy(t);
  }
  return out;
}
}  // namespace lab
SLUICE_END_NAMESPACE
