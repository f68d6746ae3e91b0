#include "sluice/runtime/lab/prune/prune_heads.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/pruners/common/select.h"
#include "sluice/runtime/lab/prune/slices.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr const char* kOut = ".attn_output.weight";

// What stays of a layer, ascending.
struct Heads {
  std::vector<int64_t> queries;
  std::vector<int64_t> keys;  // KV heads
  // Query heads of a KV head.
  int64_t shared() const { return std::ssize(queries) / std::max<int64_t>(1, std::ssize(keys)); }
};

// The heads whose columns a mask keeps, all of each.
absl::StatusOr<Heads> HeadsOf(const std::string& name, const Mask& mask,
                              const host::ModelShape& s) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int64_t> columns, KeptColumns(name, mask));
  const auto add = [](int64_t head, std::vector<int64_t>& heads) {
    if (heads.empty() || heads.back() != head) heads.push_back(head);
  };
  Heads stay;
  for (int64_t c : columns) add(c / s.head_dim, stay.queries);
  if (std::ssize(columns) != s.head_dim * std::ssize(stay.queries))
    return absl::InvalidArgumentError(absl::StrCat(
        "the mask of ", name, " keeps ", columns.size(), " columns of ", stay.queries.size(),
        " heads, ", s.head_dim, " columns each; allowed: whole heads"));

  std::vector<int64_t> of(static_cast<size_t>(s.kv_heads));  // query heads of each that stay
  for (int64_t head : stay.queries) {
    const int64_t key = head / (s.heads / s.kv_heads);
    add(key, stay.keys);
    ++of[static_cast<size_t>(key)];
  }
  for (int64_t key : stay.keys) {
    const int64_t has = of[static_cast<size_t>(key)];
    if (has != stay.shared())
      return absl::InvalidArgumentError(
          absl::StrCat("the mask of ", name, " keeps ", has, " query heads of KV head ", key,
                       " and ", stay.queries.size(), " of all ", stay.keys.size(),
                       " KV heads that stay; allowed: as many of each"));
  }
  return stay;
}

// [head * each, (head + 1) * each) of every head.
std::vector<int64_t> Spread(const std::vector<int64_t>& heads, int64_t each) {
  std::vector<int64_t> all;
  for (int64_t h : heads) {
    for (int64_t i = 0; i < each; ++i) all.push_back(h * each + i);
  }
  return all;
}

// The numbers of heads, and their length where only the width said it.
absl::Status WriteShape(const Gguf& file, const host::ModelShape& s, const Heads& stay,
                        GgufWriter& out) {
  SLUICE_RETURN_IF_ERROR(out.Replace("llama.attention.head_count", std::ssize(stay.queries)));
  if (file.Has("llama.attention.head_count_kv"))
    SLUICE_RETURN_IF_ERROR(out.Replace("llama.attention.head_count_kv", std::ssize(stay.keys)));
  for (const char* key : {"llama.attention.key_length", "llama.attention.value_length"}) {
    if (!file.Has(key))
      SLUICE_RETURN_IF_ERROR(out.SetLike(key, "llama.attention.head_count", s.head_dim));
  }
  return absl::OkStatus();
}

// Of n, which `what` names.
absl::StatusOr<int64_t> SomeStay(int64_t n, double ratio, const std::string& what) {
  const PruneTarget target = {.ratio = ratio};
  const int64_t stay = ratio >= 0 && ratio <= 1 ? pruning::Stay(target, n) : -1;
  if (stay >= 1 && stay < n) return stay;
  return absl::InvalidArgumentError(
      absl::StrCat("a share of ", ratio, " of ", what,
                   "; allowed: a share by which at least one goes and one stays",
                   n > 1 ? absl::StrCat(", 1/", n, " to below 1") : ", of two or more"));
}
}  // namespace

absl::StatusOr<int64_t> GroupsThatStay(int64_t groups, double ratio) {
  return SomeStay(groups, ratio,
                  absl::StrCat(groups, " KV heads a layer, each with its query heads"));
}

absl::StatusOr<int64_t> QueryHeadsThatStay(int64_t shared, int64_t groups, double ratio) {
  return SomeStay(shared, ratio,
                  absl::StrCat(shared, " query heads of each of ", groups, " KV heads a layer"));
}

absl::StatusOr<GgufWriter> WithoutHeads(const Gguf& file, const host::ModelShape& s,
                                        const std::map<std::string, Mask>& masks) {
  std::map<std::string, Heads> stay;
  for (const auto& [name, mask] : masks) {
    SLUICE_ASSIGN_OR_RETURN(stay[name], HeadsOf(name, mask, s));
  }
  if (stay.empty()) return absl::InvalidArgumentError("no masks of heads");
  const Heads& first = stay.begin()->second;
  GgufWriter out;
  out.CopyValues(file);
  SLUICE_RETURN_IF_ERROR(WriteShape(file, s, first, out));

  for (const std::string& name : file.tensor_names()) {
    const GgufTensor& t = **file.Tensor(name);
    const bool queries = absl::EndsWith(name, ".attn_q.weight");
    const bool keys =
        absl::EndsWith(name, ".attn_k.weight") || absl::EndsWith(name, ".attn_v.weight");
    if (!queries && !keys && !absl::EndsWith(name, kOut)) {
      out.Copy(t);
      continue;
    }
    const std::string of = absl::StrCat(name.substr(0, name.find('.', 4)), kOut);
    const auto found = stay.find(of);
    const Heads heads = found == stay.end() ? Heads() : found->second;
    if (heads.keys.empty() || heads.keys.size() != first.keys.size() ||
        heads.queries.size() != first.queries.size())
      return absl::InvalidArgumentError(
          absl::StrCat(of, " keeps ", heads.queries.size(), " query and ", heads.keys.size(),
                       " KV heads, another layer ", first.queries.size(), " and ",
                       first.keys.size(), "; allowed: as many in each, 1 or more"));
    if (keys) {
      AddSlices(t, Spread(heads.keys, s.head_dim), out);
    } else if (queries) {
      AddSlices(t, Spread(heads.queries, s.head_dim), out);
    } else {
      SLUICE_RETURN_IF_ERROR(AddColumns(t, Spread(heads.queries, s.head_dim), out));
    }
  }
  return out;
}
}  // namespace lab
SLUICE_END_NAMESPACE
