#include "sluice/runtime/lab/calibrate_spt.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/routers/expert/spt/clusters.h"
#include "sluice/routers/expert/spt/split.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
MatrixView<const float> RowsOf(const std::vector<float>& x, int64_t cols) {
  return {x.data(), std::ssize(x) / cols, cols, cols};
}
// The draw of a permutation: the order of one random number each.
std::vector<int32_t> RandomOrder(int64_t n, uint64_t seed, int64_t layer) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int32_t i) {
    return RandomBits({seed, 0, static_cast<uint64_t>(layer), 0, static_cast<uint64_t>(i)});
  };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  return order;
}
Linear RandomRouter(int64_t width, int64_t blocks, uint64_t seed, int64_t layer) {
  Linear l{width, blocks, std::vector<float>(static_cast<size_t>(width * blocks)),
           std::vector<float>(static_cast<size_t>(blocks))};
  for (size_t i = 0; i < l.weight.size(); ++i)
    l.weight[i] = static_cast<float>(RandomNormal({seed, 1, static_cast<uint64_t>(layer), 0, i}));
  return l;
}
}  // namespace

absl::StatusOr<std::vector<FfnSamples>> ObserveFfn(const host::Model& model,
                                                   const std::vector<int32_t>& tokens,
                                                   int64_t window, int threads) {
  if (model.shape.experts > 0)
    return absl::InvalidArgumentError(
        absl::StrCat("the model is a Mixture of ", model.shape.experts,
                     " experts already; allowed: models with a dense FFN"));
  std::vector<FfnSamples> seen(static_cast<size_t>(model.shape.layers));
  host::EngineOptions o;
  o.threads = threads;
  o.max_tokens = window;
  o.on_input = [&](int64_t layer, host::MatrixInput input, int64_t n, const float* x) {
    FfnSamples& s = seen[static_cast<size_t>(layer)];
    if (input == host::MatrixInput::kFfn) {
      s.input.insert(s.input.end(), x, x + n * model.shape.width);
      s.tokens += n;
    } else if (input == host::MatrixInput::kFfnDown) {
      s.activity.insert(s.activity.end(), x, x + n * model.shape.ffn);
    }
  };
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model, o));
  for (int64_t at = 0; at < std::ssize(tokens); at += window) {
    e->Reset();
    const int64_t end = std::min(std::ssize(tokens), at + window);
    SLUICE_RETURN_IF_ERROR(e->Feed({tokens.begin() + at, tokens.begin() + end}, window));
  }
  return seen;
}

absl::StatusOr<SptLayer> SplitFfn(const host::Model& model, int64_t layer, const FfnSamples& seen,
                                  const SptOptions& o) {
  const host::ModelShape& m = model.shape;
  if (o.blocks < 1 || m.ffn % o.blocks != 0)
    return absl::InvalidArgumentError(
        absl::StrCat(o.blocks, " blocks of ", m.ffn, " neurons; allowed: a divisor of them"));
  SptLayer split;
  const MatrixView<const float> activity = RowsOf(seen.activity, m.ffn);
  if (o.order == BlockOrder::kClustered) {
    SLUICE_ASSIGN_OR_RETURN(split.order,
                            expert::NeuronClusters::Order(activity, o.blocks, o.turns));
  } else if (o.order == BlockOrder::kRandom) {
    split.order = RandomOrder(m.ffn, o.seed, layer);
  } else {
    split.order.resize(static_cast<size_t>(m.ffn));
    std::iota(split.order.begin(), split.order.end(), 0);
  }

  if (o.random_router) {
    split.router = RandomRouter(m.width, o.blocks, o.seed, layer);
    return split;
  }
  const MatrixView<const float> down = RowsOf(model.layers[static_cast<size_t>(layer)].down, m.ffn);
  const std::vector<float> outputs = expert::BlockOutputs(activity, down, split.order, o.blocks);
  SLUICE_ASSIGN_OR_RETURN(
      split.router,
      expert::FitBlockRouter(RowsOf(seen.input, m.width), expert::BlockEnergies(outputs, m.width),
                             o.blocks, o.ridge));
  return split;
}

absl::StatusOr<std::string> WriteSpt(const host::Model& model, const std::vector<SptLayer>& layers,
                                     int64_t blocks) {
  const host::ModelShape& m = model.shape;
  const auto width = static_cast<uint64_t>(m.width);
  const auto neurons = static_cast<uint64_t>(m.ffn);
  GgufWriter out;
  out.Set("general.architecture", std::string("sluice-router"));
  out.Set("sluice.method", std::string("spt"));
  out.Set("sluice.spt.layers", m.layers);
  out.Set("sluice.spt.dim", m.width);
  out.Set("sluice.spt.neurons", m.ffn);
  out.Set("sluice.spt.blocks", blocks);
  out.Set("sluice.spt.activation", int64_t{1});  // SiLU
  out.Set("sluice.spt.gated", int64_t{1});
  for (size_t i = 0; i < layers.size(); ++i) {
    const host::Layer& l = model.layers[i];
    const SptLayer& split = layers[i];
    const auto add = [&](const char* part, absl::Span<const uint64_t> shape,
                         const std::vector<float>& weight, const std::vector<float>& bias) {
      const std::string name = absl::StrCat("blk.", i, ".spt.", part);
      SLUICE_RETURN_IF_ERROR(out.Add(name + ".weight", shape, weight));
      return out.Add(name + ".bias", shape.subspan(1), bias);
    };
    const float* gate = l.gate_up.data();
    const float* up = gate + m.ffn * m.width;
    const auto rows = [&](const float* w) {
      return expert::RowsInOrder({w, m.ffn, m.width, m.width}, split.order);
    };
    const std::vector<float> none(neurons);
    SLUICE_RETURN_IF_ERROR(add("router", {{width, static_cast<uint64_t>(blocks)}},
                               split.router.weight, split.router.bias));
    SLUICE_RETURN_IF_ERROR(add("gate", {{width, neurons}}, rows(gate), none));
    SLUICE_RETURN_IF_ERROR(add("up", {{width, neurons}}, rows(up), none));
    SLUICE_RETURN_IF_ERROR(
        add("down", {{neurons, width}},
            expert::ColumnsInOrder({l.down.data(), m.width, m.ffn, m.ffn}, split.order),
            std::vector<float>(width)));
  }
  return out.Bytes();
}

absl::StatusOr<std::string> CalibrateSpt(const host::Model& model,
                                         const std::vector<int32_t>& tokens, const SptOptions& o,
                                         const std::function<void(const std::string&)>& progress) {
  if (std::ssize(tokens) <= model.shape.width || o.window < 1)
    return absl::InvalidArgumentError(absl::StrCat(
        tokens.size(), " tokens to calibrate on in windows of ", o.window,
        "; the fit needs more than the width, ", model.shape.width, ", and windows from 1"));
  const auto say = [&](const std::string& what) {
    if (progress) progress(what);
  };
  say("observing");
  SLUICE_ASSIGN_OR_RETURN(const std::vector<FfnSamples> seen,
                          ObserveFfn(model, tokens, o.window, o.threads));
  std::vector<SptLayer> layers;
  for (int64_t i = 0; i < model.shape.layers; ++i) {
    say(absl::StrCat("layer ", i + 1, "/", model.shape.layers));
    SLUICE_ASSIGN_OR_RETURN(SptLayer split, SplitFfn(model, i, seen[static_cast<size_t>(i)], o));
    layers.push_back(std::move(split));
  }
  return WriteSpt(model, layers, o.blocks);
}
}  // namespace lab
SLUICE_END_NAMESPACE
