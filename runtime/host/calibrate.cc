#include "sluice/runtime/host/calibrate.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/routers/token/informed_routing/ridge_fit.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
using See = std::function<void(size_t unit, const float* h, const float* u)>;

absl::Status EachToken(const Model& model, const std::vector<int32_t>& tokens,
                       const CalibrateOptions& o, const See& see) {
  EngineOptions eo;
  eo.threads = o.threads;
  eo.max_tokens = o.window;
  eo.observe = [&](int64_t layer, int64_t unit, int64_t n, const float* h, const float* u) {
    for (int64_t i = 0; i < n; ++i)
      see(2 * layer + unit, h + i * model.shape.width, u + i * model.shape.width);
  };
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> e, Engine::Create(model, eo));
  for (size_t at = 0; at < tokens.size(); at += static_cast<size_t>(o.window)) {
    e->Reset();
    const size_t end = std::min(tokens.size(), at + static_cast<size_t>(o.window));
    SLUICE_RETURN_IF_ERROR(e->Feed(
        {tokens.begin() + static_cast<int64_t>(at), tokens.begin() + static_cast<int64_t>(end)},
        o.window));
  }
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<std::string> CalibrateInformedRouting(
    const Model& model, const std::vector<int32_t>& tokens, const CalibrateOptions& o,
    const std::function<void(const std::string&)>& progress) {
  const int64_t width = model.shape.width;
  if (static_cast<int64_t>(tokens.size()) <= width)
    return absl::InvalidArgumentError(absl::StrCat(
        tokens.size(), " tokens to calibrate on; the fit needs more than the width, ", width));
  if (!(o.sparsity > 0 && o.sparsity < 1) || o.window < 1)
    return absl::InvalidArgumentError(absl::StrCat(
        "sparsity ", o.sparsity, " is outside (0, 1), or window ", o.window, " is not positive"));
  const size_t units = static_cast<size_t>(2 * model.shape.layers);
  const auto say = [&](const std::string& what) {
    if (progress) progress(what);
  };
  // Each step is a pass over the tokens: what it fits on is never stored.
  const auto fit = [&](const char* what, int64_t rank,
                       const auto& target) -> absl::StatusOr<std::vector<FeatureForecaster>> {
    say(absl::StrCat("observing, ", what));
    std::vector<RidgeFit> sums(units, RidgeFit(width));
    std::vector<float> y(width);
    SLUICE_RETURN_IF_ERROR(
        EachToken(model, tokens, o, [&](size_t unit, const float* h, const float* u) {
          sums[unit].Add(h, target(unit, h, u, y));
        }));
    std::vector<FeatureForecaster> out;
    for (const RidgeFit& s : sums) {
      say(absl::StrCat("solving, ", what, " ", out.size() + 1, "/", units));
      SLUICE_ASSIGN_OR_RETURN(FeatureForecaster f, s.Solve(rank, o.ridge));
      out.push_back(std::move(f));
    }
    return out;
  };
  SLUICE_ASSIGN_OR_RETURN(
      const std::vector<FeatureForecaster> forecasters,
      fit("forecasters", o.rank,
          [](size_t, const float*, const float* u, std::vector<float>&) { return u; }));
  std::vector<float> scratch(forecasters[0].scratch_floats(1)), forecast(width);
  SLUICE_ASSIGN_OR_RETURN(
      const std::vector<FeatureForecaster> errors,
      fit("errors", 1, [&](size_t unit, const float* h, const float* u, std::vector<float>& y) {
        forecasters[unit].Apply(h, 1, forecast.data(), scratch.data());
        double error = 1e-12;
        for (size_t i = 0; i < forecast.size(); ++i)
          error += (static_cast<double>(forecast[i]) - static_cast<double>(u[i])) *
                   (static_cast<double>(forecast[i]) - static_cast<double>(u[i]));
        y[0] = static_cast<float>(std::log(error));
        return y.data();
      }));

  say("finding the threshold");
  std::vector<float> predicted;
  const auto line = [&](size_t unit) {  // log error = weight h + bias
    const FeatureForecaster& f = errors[unit];
    std::vector<float> weight(f.down.weight);
    for (float& w : weight) w *= f.up.weight[0];
    return std::pair(weight, f.down.bias[0] * f.up.weight[0] + f.up.bias[0]);
  };
  std::vector<std::pair<std::vector<float>, float>> lines;
  for (size_t u = 0; u < units; ++u) lines.push_back(line(u));
  SLUICE_RETURN_IF_ERROR(
      EachToken(model, tokens, o, [&](size_t unit, const float* h, const float*) {
        float x = lines[unit].second;
        for (size_t i = 0; i < static_cast<size_t>(width); ++i) x += lines[unit].first[i] * h[i];
        predicted.push_back(x);
      }));
  const auto at =
      predicted.begin() + static_cast<int64_t>(o.sparsity * static_cast<double>(predicted.size()));
  std::nth_element(predicted.begin(), at, predicted.end());
  const float threshold = *at;

  // The router's two hidden units carry r and -r through their ReLUs: logits (execute, approximate)
  // = (r - t, 0).
  GgufWriter out;
  out.Set("general.architecture", std::string("sluice-router"));
  out.Set("sluice.method", std::string("informed_routing"));
  out.Set("sluice.informed.layers", model.shape.layers);
  out.Set("sluice.informed.dim", width);
  out.Set("sluice.informed.hidden", int64_t{2});
  out.Set("sluice.informed.rank", o.rank);
  out.Set("sluice.informed.silu", int64_t{0});
  out.Set("sluice.informed.sparsity", o.sparsity);
  const uint64_t w = static_cast<uint64_t>(width), r = static_cast<uint64_t>(o.rank);
  for (size_t u = 0; u < units; ++u) {
    const std::string name =
        absl::StrCat("blk.", u / 2, ".informed.", u % 2 == 0 ? "attn." : "ffn.");
    const auto add = [&](const char* part, std::vector<uint64_t> shape,
                         const std::vector<float>& data) {
      return out.Add(name + part, shape, data);
    };
    std::vector<float> first = lines[u].first;
    for (float x : lines[u].first) first.push_back(-x);
    const float bias = lines[u].second - threshold;
    SLUICE_RETURN_IF_ERROR(add("router0.weight", {w, 2}, first));
    SLUICE_RETURN_IF_ERROR(add("router0.bias", {2}, {bias, -bias}));
    SLUICE_RETURN_IF_ERROR(add("router1.weight", {2, 2}, {1, -1, 0, 0}));
    SLUICE_RETURN_IF_ERROR(add("router1.bias", {2}, {0, 0}));
    if (o.rank == 0) continue;
    SLUICE_RETURN_IF_ERROR(add("down.weight", {w, r}, forecasters[u].down.weight));
    SLUICE_RETURN_IF_ERROR(add("down.bias", {r}, forecasters[u].down.bias));
    SLUICE_RETURN_IF_ERROR(add("up.weight", {r, w}, forecasters[u].up.weight));
    SLUICE_RETURN_IF_ERROR(add("up.bias", {w}, forecasters[u].up.bias));
  }
  return out.Bytes();
}
}  // namespace host
SLUICE_END_NAMESPACE
