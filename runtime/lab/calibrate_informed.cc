#include "sluice/runtime/lab/calibrate_informed.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/routers/token/informed_routing/ridge_fit.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using Told = std::function<void(const std::string&)>;

// The method reads a hidden state h and approximates what a unit adds to it, u. Each step is a pass
// over the tokens: what it fits on is never stored.
class InformedCalibration {
 public:
  InformedCalibration(const host::Model& model, const std::vector<int32_t>& tokens,
                      const CalibrateOptions& o, const Told& progress)
      : model_(model),
        tokens_(tokens),
        o_(o),
        progress_(progress),
        width_(model.shape.width),
        units_(static_cast<size_t>(2 * model.shape.layers)) {}
  absl::StatusOr<std::string> Run() {
    SLUICE_RETURN_IF_ERROR(Check());
    SLUICE_RETURN_IF_ERROR(FitForecasters());
    SLUICE_RETURN_IF_ERROR(FitErrors());
    SLUICE_RETURN_IF_ERROR(FindThreshold());
    return Write();
  }

 private:
  using See = std::function<void(size_t unit, const float* h, const float* u)>;
  // A unit's predicted log error: weight h + bias.
  struct ErrorLine {
    std::vector<float> weight;
    float bias = 0;
  };

  absl::Status Check() const {
    if (static_cast<int64_t>(tokens_.size()) <= width_)
      return absl::InvalidArgumentError(absl::StrCat(
          tokens_.size(), " tokens to calibrate on; the fit needs more than the width, ", width_));
    if (!(o_.sparsity > 0 && o_.sparsity < 1) || o_.window < 1)
      return absl::InvalidArgumentError(absl::StrCat("sparsity ", o_.sparsity,
                                                     " is outside (0, 1), or window ", o_.window,
                                                     " is not positive"));
    return absl::OkStatus();
  }
  void Say(const std::string& what) const {
    if (progress_) progress_(what);
  }

  absl::Status EachToken(const See& see) const {
    host::EngineOptions eo;
    eo.threads = o_.threads;
    eo.max_tokens = o_.window;
    eo.observe = [&](int64_t layer, int64_t unit, int64_t n, const float* h, const float* u) {
      for (int64_t i = 0; i < n; ++i) see(2 * layer + unit, h + i * width_, u + i * width_);
    };
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e,
                            host::Engine::Create(model_, eo));
    for (size_t at = 0; at < tokens_.size(); at += static_cast<size_t>(o_.window)) {
      e->Reset();
      const size_t end = std::min(tokens_.size(), at + static_cast<size_t>(o_.window));
      SLUICE_RETURN_IF_ERROR(e->Feed(
          {tokens_.begin() + static_cast<int64_t>(at), tokens_.begin() + static_cast<int64_t>(end)},
          o_.window));
    }
    return absl::OkStatus();
  }
  // A unit each, from h to `target(unit, h, u)` [width].
  template <class Target>
  absl::StatusOr<std::vector<token::FeatureForecaster>> Fit(const char* what, int64_t rank,
                                                            const Target& target) const {
    Say(absl::StrCat("observing, ", what));
    std::vector<token::RidgeFit> sums(units_, token::RidgeFit(width_));
    SLUICE_RETURN_IF_ERROR(EachToken([&](size_t unit, const float* h, const float* u) {
      sums[unit].Add(h, target(unit, h, u));
    }));
    std::vector<token::FeatureForecaster> out;
    for (const token::RidgeFit& s : sums) {
      Say(absl::StrCat("solving, ", what, " ", out.size() + 1, "/", units_));
      SLUICE_ASSIGN_OR_RETURN(token::FeatureForecaster f, s.Solve(rank, o_.ridge));
      out.push_back(std::move(f));
    }
    return out;
  }

  absl::Status FitForecasters() {
    SLUICE_ASSIGN_OR_RETURN(
        forecasters_,
        Fit("forecasters", o_.rank, [](size_t, const float*, const float* u) { return u; }));
    return absl::OkStatus();
  }
  // The log of a forecast's squared error, itself forecast by one feature: a line.
  absl::Status FitErrors() {
    std::vector<float> scratch(forecasters_[0].scratch_floats(1)), forecast(width_), y(width_);
    const auto log_error = [&](size_t unit, const float* h, const float* u) {
      forecasters_[unit].Apply(h, 1, forecast.data(), scratch.data());
      double error = 1e-12;
      for (size_t i = 0; i < forecast.size(); ++i) {
        const double miss = static_cast<double>(forecast[i]) - static_cast<double>(u[i]);
        error += miss * miss;
      }
      y[0] = static_cast<float>(std::log(error));
      return y.data();
    };
    SLUICE_ASSIGN_OR_RETURN(const std::vector<token::FeatureForecaster> errors,
                            Fit("errors", 1, log_error));
    for (const token::FeatureForecaster& f : errors) {
      ErrorLine line = {f.down.weight, f.down.bias[0] * f.up.weight[0] + f.up.bias[0]};
      for (float& w : line.weight) w *= f.up.weight[0];
      lines_.push_back(std::move(line));
    }
    return absl::OkStatus();
  }
  // Of the predicted errors of all tokens and units, the one below which the wanted share lies.
  absl::Status FindThreshold() {
    Say("finding the threshold");
    std::vector<float> predicted;
    SLUICE_RETURN_IF_ERROR(EachToken([&](size_t unit, const float* h, const float*) {
      float x = lines_[unit].bias;
      for (size_t i = 0; i < static_cast<size_t>(width_); ++i) x += lines_[unit].weight[i] * h[i];
      predicted.push_back(x);
    }));
    const auto at = predicted.begin() +
                    static_cast<int64_t>(o_.sparsity * static_cast<double>(predicted.size()));
    std::nth_element(predicted.begin(), at, predicted.end());
    threshold_ = *at;
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Write() const {
    GgufWriter out;
    out.Set("general.architecture", std::string("sluice-router"));
    out.Set("sluice.method", std::string("informed_routing"));
    out.Set("sluice.informed.layers", model_.shape.layers);
    out.Set("sluice.informed.dim", width_);
    out.Set("sluice.informed.hidden", int64_t{2});
    out.Set("sluice.informed.rank", o_.rank);
    out.Set("sluice.informed.silu", int64_t{0});
    out.Set("sluice.informed.sparsity", o_.sparsity);
    for (size_t u = 0; u < units_; ++u) SLUICE_RETURN_IF_ERROR(AddUnit(u, out));
    return out.Bytes();
  }
  // The router's two hidden units carry r and -r through their ReLUs: logits (execute, approximate)
  // = (r - t, 0).
  absl::Status AddUnit(size_t unit, GgufWriter& out) const {
    const std::string name =
        absl::StrCat("blk.", unit / 2, ".informed.", unit % 2 == 0 ? "attn." : "ffn.");
    const auto add = [&](const char* part, std::vector<uint64_t> shape,
                         const std::vector<float>& data) {
      return out.Add(name + part, shape, data);
    };
    const uint64_t w = static_cast<uint64_t>(width_), r = static_cast<uint64_t>(o_.rank);
    const ErrorLine& line = lines_[unit];
    std::vector<float> first = line.weight;
    for (float x : line.weight) first.push_back(-x);
    const float bias = line.bias - threshold_;
    SLUICE_RETURN_IF_ERROR(add("router0.weight", {w, 2}, first));
    SLUICE_RETURN_IF_ERROR(add("router0.bias", {2}, {bias, -bias}));
    SLUICE_RETURN_IF_ERROR(add("router1.weight", {2, 2}, {1, -1, 0, 0}));
    SLUICE_RETURN_IF_ERROR(add("router1.bias", {2}, {0, 0}));
    if (o_.rank == 0) return absl::OkStatus();
    const token::FeatureForecaster& f = forecasters_[unit];
    SLUICE_RETURN_IF_ERROR(add("down.weight", {w, r}, f.down.weight));
    SLUICE_RETURN_IF_ERROR(add("down.bias", {r}, f.down.bias));
    SLUICE_RETURN_IF_ERROR(add("up.weight", {r, w}, f.up.weight));
    return add("up.bias", {w}, f.up.bias);
  }

  const host::Model& model_;
  const std::vector<int32_t>& tokens_;
  const CalibrateOptions& o_;
  const Told& progress_;
  const int64_t width_;
  const size_t units_;
  std::vector<token::FeatureForecaster> forecasters_;  // of u, a unit
  std::vector<ErrorLine> lines_;                       // a unit
  float threshold_ = 0;                                // of the predicted log error
};
}  // namespace

absl::StatusOr<std::string> CalibrateInformedRouting(const host::Model& model,
                                                     const std::vector<int32_t>& tokens,
                                                     const CalibrateOptions& o,
                                                     const Told& progress) {
  return InformedCalibration(model, tokens, o, progress).Run();
}
}  // namespace lab
SLUICE_END_NAMESPACE
