// The engine's blocks under token pruning.
#include <algorithm>
#include <numeric>

#include "sluice/runtime/host/engine_impl.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// Which of the n tokens fed the block computes.
absl::Status Engine::Choose(int64_t layer, int64_t n) {
  Impl& s = *impl_;
  const auto mark = Clock::now();
  SLUICE_RETURN_IF_ERROR(s.routing.pruning->Choose(layer, length_, n, s.chosen));
  timing_.route_s += Seconds(mark);
  const int64_t kept = static_cast<int64_t>(s.chosen.size());
  block_counters_[layer].executed += kept;
  block_counters_[layer].approximated += n - kept;
  return absl::OkStatus();
}

// Runs on the states of the chosen, [chosen, width]: gathers and scatters where some are not.
absl::Status Engine::RunChosen(int64_t n, const std::function<absl::Status(float* x)>& run) {
  Impl& s = *impl_;
  if (std::ssize(s.chosen) == n) return run(s.x.data());
  const size_t width = static_cast<size_t>(model_.shape.width);
  const auto state = [&](size_t i) {
    return &s.x[static_cast<size_t>(s.chosen[i] - length_) * width];
  };
  s.gathered.resize(s.chosen.size() * width);
  for (size_t i = 0; i < s.chosen.size(); ++i)
    std::copy(state(i), state(i) + width, s.gathered.begin() + static_cast<int64_t>(i * width));
  SLUICE_RETURN_IF_ERROR(run(s.gathered.data()));
  for (size_t i = 0; i < s.chosen.size(); ++i) {
    const auto row = s.gathered.begin() + static_cast<int64_t>(i * width);
    std::copy(row, row + static_cast<int64_t>(width), state(i));
  }
  return absl::OkStatus();
}

// The n tokens fed, through one block: choose, gather, compute among the chosen, scatter.
absl::Status Engine::RunPruned(int64_t layer, int64_t n) {
  Impl& s = *impl_;
  SLUICE_RETURN_IF_ERROR(Choose(layer, n));
  const int64_t kept = std::ssize(s.chosen);
  // Prompts run in the places of the chosen tokens; later tokens stand behind the keys that are
  // missing, at their own positions.
  const bool decoding = length_ > 0;
  s.routing.pruning->BeginQueries();
  SLUICE_RETURN_IF_ERROR(RunChosen(n, [&](float* x) -> absl::Status {
    for (int64_t at = 0; at < kept; at += options_.chunk) {
      const int64_t count = std::min(options_.chunk, kept - at);
      Pass pass = {layer, x + at * model_.shape.width, length_ + at, count,
                   length_ + (decoding ? n : kept)};
      if (!decoding) pass.positions = s.chosen;
      SLUICE_RETURN_IF_ERROR(RunLayer(pass));
    }
    return absl::OkStatus();
  }));

  KvCache& cache = s.cache[layer];
  if (kept > 0 && layer + 1 < model_.shape.layers && s.routing.pruning->scores()) {
    const auto scoring = Clock::now();
    s.routing.pruning->Score(cache.keys(), s.chosen);
    timing_.route_s += Seconds(scoring);
  }
  cache.set_missing(length_ + n - cache.rows());
  return absl::OkStatus();
}

// The n tokens fed, through the block's attention; then the chosen through its FFN.
absl::Status Engine::RunPrunedFfn(int64_t layer, int64_t n) {
  Impl& s = *impl_;
  const Layer& w = model_.layers[layer];
  const int64_t width = model_.shape.width;
  s.routing.pruning->BeginQueries();
  for (int64_t at = 0; at < n; at += options_.chunk) {
    const int64_t count = std::min(options_.chunk, n - at);
    const Pass pass = {layer, &s.x[at * width], length_ + at, count, length_ + n};
    Norm(w.attn_norm, pass.x, count);
    SLUICE_RETURN_IF_ERROR(RunAttention(pass));
  }
  if (s.routing.pruning->scores()) {
    const auto scoring = Clock::now();
    s.chosen.resize(static_cast<size_t>(n));
    std::iota(s.chosen.begin(), s.chosen.end(), static_cast<int32_t>(length_));
    s.routing.pruning->Score(s.cache[layer].keys(), s.chosen);
    timing_.route_s += Seconds(scoring);
  }

  SLUICE_RETURN_IF_ERROR(Choose(layer, n));
  const int64_t kept = std::ssize(s.chosen);
  return RunChosen(n, [&](float* x) -> absl::Status {
    for (int64_t at = 0; at < kept; at += options_.chunk) {
      const int64_t count = std::min(options_.chunk, kept - at);
      Norm(w.ffn_norm, x + at * width, count);
      SLUICE_RETURN_IF_ERROR(Ffn(layer, length_ + at, count, s.h.data(), x + at * width));
    }
    return absl::OkStatus();
  });
}
}  // namespace host
SLUICE_END_NAMESPACE
