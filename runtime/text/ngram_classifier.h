#ifndef SLUICE_RUNTIME_TEXT_NGRAM_CLASSIFIER_H_
#define SLUICE_RUNTIME_TEXT_NGRAM_CLASSIFIER_H_
// Softmax regression on hashed n-grams: words and pairs of words, and runs of 3 to 5 characters.
// Weights of a text's features, counted and scaled to unit length, are the sum of a few hundred
// cache lines: some microseconds a text.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/api/weight_source.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
class NgramClassifier {
 public:
  static constexpr size_t kMaxText = 4096;  // bytes read of a text; the rest is cut
  struct Feature {
    uint32_t bucket;
    float value;
  };
  struct Example {
    std::string text;
    int label = 0;
  };
  struct TrainOptions {
    int64_t bits = 15;  // buckets = 2^bits
    int64_t epochs = 20;
    double rate = 0.5, l2 = 1e-6;
    uint64_t seed = 1;
  };

  static std::vector<Feature> Features(absl::string_view text, int64_t bits) {
    std::string s = absl::AsciiStrToLower(text.substr(0, kMaxText));
    for (char& c : s) {
      if (absl::ascii_isspace(static_cast<unsigned char>(c))) c = ' ';
      if (absl::ascii_isdigit(static_cast<unsigned char>(c))) c = '0';
    }
    std::vector<uint32_t> buckets;
    const uint32_t mask = (uint32_t{1} << bits) - 1;
    auto add = [&](absl::string_view gram, uint32_t kind) {
      uint32_t h = 2166136261u ^ kind;
      for (char c : gram) h = (h ^ static_cast<unsigned char>(c)) * 16777619u;
      h ^= h >> 15;
      buckets.push_back((h * 2654435761u >> 7) & mask);
    };
    const absl::string_view all(s);
    for (size_t n = 3; n <= 5; ++n) {
      for (size_t i = 0; i + n <= all.size(); ++i) add(all.substr(i, n), static_cast<uint32_t>(n));
    }
    absl::string_view previous;
    for (size_t i = 0; i < all.size();) {
      const bool word = absl::ascii_isalnum(static_cast<unsigned char>(all[i])) ||
                        static_cast<unsigned char>(all[i]) > 127;
      size_t end = i + 1;
      while (word && end < all.size() &&
             (absl::ascii_isalnum(static_cast<unsigned char>(all[end])) ||
              static_cast<unsigned char>(all[end]) > 127))
        ++end;
      const absl::string_view token = all.substr(i, end - i);
      i = end;
      if (token == " ") continue;
      add(token, 1);
      if (!previous.empty())
        add(all.substr(previous.data() - all.data(), token.data() + token.size() - previous.data()),
            2);
      previous = token;
    }
    std::sort(buckets.begin(), buckets.end());
    std::vector<Feature> out;
    double square = 0;
    for (size_t i = 0; i < buckets.size();) {
      size_t end = i;
      while (end < buckets.size() && buckets[end] == buckets[i]) ++end;
      const double v = 1 + std::log(static_cast<double>(end - i));
      out.push_back({buckets[i], static_cast<float>(v)});
      square += v * v;
      i = end;
    }
    for (Feature& f : out) f.value = static_cast<float>(f.value / std::sqrt(square));
    return out;
  }

  // Stochastic gradient descent (AdaGrad) on cross entropy, examples in an order drawn from the
  // seed. Same seed, same bits.
  template <class Progress>
  static absl::StatusOr<NgramClassifier> Train(const std::vector<Example>& examples,
                                               std::vector<std::string> labels,
                                               const TrainOptions& o, const Progress& progress) {
    if (o.bits < 8 || o.bits > 24)
      return absl::OutOfRangeError(absl::StrCat("bits=", o.bits, " is outside [8, 24]"));
    if (labels.size() < 2)
      return absl::InvalidArgumentError(absl::StrCat(labels.size(), " labels; wanted 2 or more"));
    if (examples.empty()) return absl::InvalidArgumentError("no examples");
    NgramClassifier m;
    m.labels_ = std::move(labels);
    m.bits_ = o.bits;
    const size_t k = m.labels_.size();
    m.weights_.assign((size_t{1} << o.bits) * k, 0.0f);
    m.bias_.assign(k, 0.0f);
    std::vector<float> second(m.weights_.size(), 1e-6f), second_bias(k, 1e-6f);
    std::vector<std::vector<Feature>> features;
    for (const Example& e : examples) {
      if (e.label < 0 || static_cast<size_t>(e.label) >= k)
        return absl::OutOfRangeError(absl::StrCat("label ", e.label, " of ", k));
      features.push_back(Features(e.text, o.bits));
    }
    std::vector<size_t> order(examples.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::vector<double> p(k);
    for (int64_t epoch = 0; epoch < o.epochs; ++epoch) {
      for (size_t i = order.size() - 1; i > 0; --i) {
        std::swap(order[i],
                  order[RandomBits({o.seed, static_cast<uint64_t>(epoch), i, 0, 0}) % (i + 1)]);
      }
      double loss = 0;
      for (size_t i : order) {
        m.Probabilities(features[i], absl::MakeSpan(p));
        const size_t label = static_cast<size_t>(examples[i].label);
        loss -= std::log(std::max(p[label], 1e-12));
        for (size_t c = 0; c < k; ++c) {
          const float g = static_cast<float>(p[c] - (c == label));
          auto step = [&](float& w, float& s, float gradient) {
            s += gradient * gradient;
            w -= static_cast<float>(o.rate) * gradient / std::sqrt(s);
          };
          step(m.bias_[c], second_bias[c], g);
          if (std::abs(g) < 1e-4f) continue;
          for (const Feature& f : features[i]) {
            const size_t at = f.bucket * k + c;
            step(m.weights_[at], second[at],
                 g * f.value + static_cast<float>(o.l2) * m.weights_[at]);
          }
        }
      }
      progress(epoch, loss / static_cast<double>(examples.size()));
    }
    return m;
  }

  static absl::StatusOr<NgramClassifier> Create(const WeightSource& w,
                                                std::vector<std::string> labels) {
    NgramClassifier m;
    SLUICE_ASSIGN_OR_RETURN(m.bits_, w.Int("sluice.intent.bits"));
    if (m.bits_ < 8 || m.bits_ > 24 || labels.size() < 2 || labels.size() > 4096) {
      return absl::InvalidArgumentError(absl::StrCat("intent model: ", m.bits_, " bits and ",
                                                     labels.size(), " labels are no model"));
    }
    const uint64_t k = labels.size();
    m.labels_ = std::move(labels);
    SLUICE_ASSIGN_OR_RETURN(m.weights_, w.ReadF32("intent.weight", {k, uint64_t{1} << m.bits_}));
    SLUICE_ASSIGN_OR_RETURN(m.bias_, w.ReadF32("intent.bias", {k}));
    return m;
  }

  // p: [labels]. O(features * labels).
  void Probabilities(const std::vector<Feature>& features, absl::Span<double> p) const {
    const size_t k = labels_.size();
    for (size_t c = 0; c < k; ++c) p[c] = bias_[c];
    for (const Feature& f : features) {
      const float* w = &weights_[f.bucket * k];
      for (size_t c = 0; c < k; ++c) p[c] += w[c] * f.value;
    }
    const double top = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& x : p) sum += x = std::exp(x - top);
    for (double& x : p) x /= sum;
  }
  std::vector<double> Infer(absl::string_view text) const {
    std::vector<double> p(labels_.size());
    Probabilities(Features(text, bits_), absl::MakeSpan(p));
    return p;
  }
  const std::vector<std::string>& labels() const { return labels_; }
  int64_t bits() const { return bits_; }
  const std::vector<float>& weights() const { return weights_; }
  const std::vector<float>& bias() const { return bias_; }

 private:
  std::vector<std::string> labels_;
  int64_t bits_ = 0;
  std::vector<float> weights_, bias_;  // [buckets][labels]
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_TEXT_NGRAM_CLASSIFIER_H_
