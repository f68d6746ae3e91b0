#ifndef SLUICE_POLICIES_COMPOSE_ATTENTION_H_
#define SLUICE_POLICIES_COMPOSE_ATTENTION_H_
// Attention policies as text: a router, or routers made of routers.
//   mean_pool:k=16   nsa:weights=FILE            one router; learned ones name their weights
//   fallback(hip:mask_k=512 | dense)             the first that takes the call
//   cascade(dense<=2048 | mean_pool:k=16)        by length: the first whose limit the prompt keeps
//   to per_layer(2*dense | 6*mean_pool:k=16)        by layer; the last one serves all further
//   layers cross_layer(FSSS | dsa:k=512)                S layers take the plan of the nearest F
//   before them refresh(8 | hisa:k=512)                      decode steps are planned anew every so
//   many
// They nest.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "sluice/api/registry.h"
#include "sluice/policies/compose/composed.h"
#include "sluice/policies/compose/reuse.h"

SLUICE_BEGIN_NAMESPACE
class AttentionPolicyParser {
 public:
  using Made = absl::StatusOr<std::unique_ptr<const AttentionRouter>>;
  explicit AttentionPolicyParser(const FactoryMap<AttentionRouter>& routers) : routers_(routers) {}

  Made Parse(absl::string_view text, int depth = 0) const {
    text = absl::StripAsciiWhitespace(text);
    const size_t open = text.find('(');
    if (open == absl::string_view::npos) return routers_.Create(text);
    if (text.back() != ')') return Bad(text, "the last parenthesis is missing, or text follows it");
    if (depth >= kMaxDepth) return Bad(text, "nested deeper than ", kMaxDepth);

    const absl::string_view name = absl::StripAsciiWhitespace(text.substr(0, open));
    SLUICE_ASSIGN_OR_RETURN(const std::vector<absl::string_view> parts,
                            Split(text, text.substr(open + 1, text.size() - open - 2)));
    using Rule = ComposedAttention::Rule;
    if (name == "fallback") return Composed(text, Rule::kFallback, parts, depth);
    if (name == "cascade") return Composed(text, Rule::kCascade, parts, depth);
    if (name == "per_layer") return Composed(text, Rule::kPerLayer, parts, depth);
    if (name == "cross_layer" || name == "refresh") return Reusing(text, name, parts, depth);
    return Bad(text, "no composition '", name,
               "'; known: cascade, cross_layer, fallback, per_layer, refresh");
  }

 private:
  static constexpr int kMaxDepth = 8;

  template <class... Why>
  static absl::Status Bad(absl::string_view text, const Why&... why) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "': ", why...));
  }

  // The parts between bars that stand outside parentheses.
  static absl::StatusOr<std::vector<absl::string_view>> Split(absl::string_view text,
                                                              absl::string_view inner) {
    std::vector<absl::string_view> parts;
    int level = 0;
    size_t from = 0;
    for (size_t i = 0; i <= inner.size(); ++i) {
      const char c = i < inner.size() ? inner[i] : '|';
      if (c == '(') ++level;
      if (c == ')' && --level < 0) return Bad(text, "parentheses do not match");
      if (i == inner.size() || (c == '|' && level == 0)) {
        parts.push_back(absl::StripAsciiWhitespace(inner.substr(from, i - from)));
        from = i + 1;
      }
    }
    if (level != 0) return Bad(text, "parentheses do not match");
    return parts;
  }

  Made Composed(absl::string_view text, ComposedAttention::Rule rule,
                const std::vector<absl::string_view>& texts, int depth) const {
    using Rule = ComposedAttention::Rule;
    std::vector<ComposedAttention::Part> parts;
    for (size_t i = 0; i < texts.size(); ++i) {
      absl::string_view part = texts[i];
      int64_t limit = 0;
      if (rule == Rule::kCascade) {
        const int64_t above = parts.empty() ? 0 : parts.back().limit;
        SLUICE_ASSIGN_OR_RETURN(limit, Limit(text, i + 1 == texts.size(), above, part));
      } else if (rule == Rule::kPerLayer) {
        SLUICE_ASSIGN_OR_RETURN(limit, Layers(text, part));
      }
      SLUICE_ASSIGN_OR_RETURN(auto router, Parse(part, depth + 1));
      parts.push_back({std::move(router), limit});
      const bool first = parts.front().router->traits().bidirectional;
      if (parts.back().router->traits().bidirectional != first)
        return Bad(text, "'", texts[0], "' and '", texts[i],
                   "' do not go together: ", first ? "the first" : "the second",
                   " has no causal mask, for encoders, and the other has one");
    }
    return std::make_unique<const ComposedAttention>(std::string(text), rule, std::move(parts));
  }

  // Takes "<=KEYS" off a part of a cascade.
  static absl::StatusOr<int64_t> Limit(absl::string_view text, bool last, int64_t above,
                                       absl::string_view& part) {
    const size_t at = part.rfind("<=");
    const bool limited =
        at != absl::string_view::npos && part.find(')', at) == absl::string_view::npos;
    if (limited == last)
      return Bad(text, "every part but the last says up to which length it serves: ROUTER<=KEYS");
    if (!limited) return 0;
    int64_t limit = 0;
    if (!absl::SimpleAtoi(part.substr(at + 2), &limit) || limit <= above)
      return Bad(text, "'", part.substr(at), "' is no length above those before it");
    part = part.substr(0, at);
    return limit;
  }

  // Takes "N*" off a part of per_layer.
  static absl::StatusOr<int64_t> Layers(absl::string_view text, absl::string_view& part) {
    const size_t at = part.find('*');
    if (at == absl::string_view::npos || at > std::min(part.find('('), part.find(':'))) return 1;
    int64_t n = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(part.substr(0, at)), &n) || n <= 0)
      return Bad(text, "'", part, "' is not N*ROUTER with N of at least 1");
    part = part.substr(at + 1);
    return n;
  }

  Made Reusing(absl::string_view text, absl::string_view name,
               const std::vector<absl::string_view>& parts, int depth) const {
    const bool layers = name == "cross_layer";
    if (parts.size() != 2)
      return Bad(text, "wanted ",
                 layers ? "cross_layer(PATTERN | ROUTER)" : "refresh(STEPS | ROUTER)");
    SLUICE_ASSIGN_OR_RETURN(auto router, Parse(parts[1], depth + 1));
    if (router->traits().stages > 1 || router->traits().feedback != 0) {
      return Bad(text, router->name(),
                 " plans in stages or from feedback: its plans cannot be reused");
    }
    if (layers) {
      const absl::string_view pattern = parts[0];
      if (pattern.empty() || pattern[0] != 'F' ||
          pattern.find_first_not_of("FS") != absl::string_view::npos)
        return Bad(text, "'", pattern, "' is no pattern of F and S that begins with F");
      return std::make_unique<const CrossLayer>(std::string(text), std::string(pattern),
                                                std::move(router));
    }
    constexpr int64_t kMost = 4096;
    int64_t every = 0;
    if (!absl::SimpleAtoi(parts[0], &every) || every < 1 || every > kMost)
      return Bad(text, "'", parts[0], "' is no number of steps from 1 to ", kMost);
    return std::make_unique<const Refresh>(std::string(text), every, std::move(router));
  }

  const FactoryMap<AttentionRouter>& routers_;
};

// A router's spec or a composition of them.
inline absl::StatusOr<std::unique_ptr<const AttentionRouter>> MakeAttentionPolicy(
    absl::string_view text, const FactoryMap<AttentionRouter>& routers) {
  return AttentionPolicyParser(routers).Parse(text);
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_COMPOSE_ATTENTION_H_
