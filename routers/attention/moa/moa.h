#ifndef SLUICE_ROUTERS_ATTENTION_MOA_MOA_H_
#define SLUICE_ROUTERS_ATTENTION_MOA_MOA_H_
// MoA, a mixture of attention spans: every head sees the first keys and as many of the last ones as
// a line of its own in the sequence length says.
//
//   SELECT  of N keys the first block, and the last alpha + beta * N, by head; no scores
//   ATTEND  both as terms of a static pattern, causal, which the executor walks in closed form
//
// Planning is O(heads), whatever the lengths, and lists nothing. With beta <= 1 a key that a head's
// span has left never returns, so that a host may keep a ring of sink + span keys a head.
//
// The spans come from a calibration of the model, which is not done here; one text serves all
// layers, and per_layer(moa:... | moa:...) gives each its own. Switches where the paper's code, or
// its notes, leave a choice:
//   granularity  block: int(floor(alpha / block) + beta * blocks) blocks, a query's own included,
//                as the code has it; token: int(alpha + beta * N) keys
//   heads        a span a KV head, as its cache wants, or a query head
//   length       N is that of the prompt while it is fed and known, so that chunks give the lists
//                of one call; keys: always that of the keys so far
//   least        no span is shorter: the code's smallest cache holds the first block and another
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "sluice/api/config.h"
#include "sluice/routers/attention/common/plan.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Moa {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "moa",
      .title = "MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression",
      .arxiv = "2406.14909",
      .scattered_queries = true,
      .full_budget = "spans=0/1",
      .small_budget = "block=16,least=16,spans=0/0.125;0/0.25"};

  enum class Granularity : uint8_t { kBlock, kToken };
  enum class Heads : uint8_t { kKv, kQuery };
  enum class Length : uint8_t { kPrompt, kKeys };
  struct Config {
    std::string spans = "0/0.5";
    int64_t block = 64;
    int64_t sink = 1;
    int64_t least = 64;
    Granularity granularity = Granularity::kBlock;
    Heads heads = Heads::kKv;
    Length length = Length::kPrompt;
    template <class V>
    void VisitFields(V&& v) {
      v("spans", spans, Text{1 << 16},
        "alpha/beta of every head, ';' between heads; one serves all. beta in [0, 1]");
      v("block", block, Range<int64_t>{1, 1024}, "keys per block");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks that every query sees");
      v("least", least, Range<int64_t>{1, kEverything}, "keys of the shortest span");
      v("granularity", granularity, Choices{"block", "token"}, "what spans are counted in");
      v("heads", heads, Choices{"kv", "query"}, "the heads that spans are given for");
      v("length", length, Choices{"prompt", "keys"}, "the length that spans grow with");
    }
  };
  using Plan = RouterPlan;

  static absl::StatusOr<Moa> Create(const Config& c) {
    Moa made;
    made.config_ = c;
    for (absl::string_view head : absl::StrSplit(c.spans, ';')) {
      SLUICE_ASSIGN_OR_RETURN(const Line line, ReadLine(head));
      made.lines_.push_back(line);
    }
    return made;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    const int64_t lists = NumLists(scope(), s.heads, s.kv_heads);
    if (lines_.size() != 1 && std::ssize(lines_) != lists) {
      return absl::InvalidArgumentError(
          absl::StrCat("moa: ", lines_.size(), " spans, but the model has ", lists,
                       config_.heads == Heads::kKv ? " KV heads" : " query heads"));
    }
    Plan plan(s);
    plan.layout.max_tile = kTile;
    plan.layout.AddBranch({.rows = lists, .terms = static_cast<int32_t>(2 * lists)});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext&,
                   PlanBuilder& out) const {
    const bool prompt = config_.length == Length::kPrompt;
    const int64_t length = prompt ? std::max(in.kv_len(), in.prompt_end) : in.kv_len();

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(
        BranchWriter branch,
        out.AddBranch(
            {.encoding = Encoding::kPattern, .scope = scope(), .tile = kTile, .block = unit()}));
    const PatternTerm sink = {.kind = PatternKind::kSink,
                              .a = config_.sink * config_.block / unit()};
    for (int64_t head = 0; head < branch.num_lists(); ++head) {
      const PatternTerm span = {.kind = PatternKind::kBand, .a = Span(head, length)};
      SLUICE_RETURN_IF_ERROR(branch.AddTerm(head, sink));
      SLUICE_RETURN_IF_ERROR(branch.AddTerm(head, span));
    }
    return absl::OkStatus();
  }

 private:
  struct Line {
    double alpha = 0;
    double beta = 0;
  };

  static absl::StatusOr<Line> ReadLine(absl::string_view text) {
    constexpr double kMost = static_cast<double>(kEverything);
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(text, absl::MaxSplits('/', 1));
    Line line;
    const bool read =
        absl::SimpleAtod(parts.first, &line.alpha) && absl::SimpleAtod(parts.second, &line.beta);
    if (read && std::fabs(line.alpha) <= kMost && line.beta >= 0 && line.beta <= 1) return line;
    return absl::InvalidArgumentError(absl::StrCat("spans: '", text,
                                                   "' is not alpha/beta with alpha of at most ",
                                                   kEverything, " keys and beta in [0, 1]"));
  }

  ListScope scope() const {
    return config_.heads == Heads::kKv ? ListScope::kKvHead : ListScope::kQueryHead;
  }
  // Keys that distances count in.
  int64_t unit() const { return config_.granularity == Granularity::kBlock ? config_.block : 1; }

  // The last units that a head sees at a length, its own included.
  int64_t Span(int64_t head, int64_t length) const {
    const Line& line = lines_.size() == 1 ? lines_[0] : lines_[head];
    const bool blocks = config_.granularity == Granularity::kBlock;
    const double alpha = blocks ? std::floor(line.alpha / static_cast<double>(unit())) : line.alpha;
    const double span = alpha + line.beta * static_cast<double>(CeilDiv(length, unit()));
    return std::max(static_cast<int64_t>(span), CeilDiv(config_.least, unit()));
  }

  Config config_;
  std::vector<Line> lines_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MOA_MOA_H_
