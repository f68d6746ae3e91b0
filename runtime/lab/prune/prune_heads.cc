#include "sluice/runtime/lab/prune/prune_heads.h"

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

// The KV heads whose columns a mask keeps, all of each.
absl::StatusOr<std::vector<int64_t>> Groups(const std::string& name, const Mask& mask,
                                            int64_t wide) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int64_t> columns, KeptColumns(name, mask));
  std::vector<int64_t> groups;
  for (size_t i = 0; i < columns.size(); ++i) {
    const int64_t group = columns[i] / wide;
    if (groups.empty() || groups.back() != group) groups.push_back(group);
  }
  if (std::ssize(columns) != wide * std::ssize(groups))
    return absl::InvalidArgumentError(
        absl::StrCat("the mask of ", name, " keeps ", columns.size(), " columns of ", groups.size(),
                     " groups of heads, ", wide, " columns each; allowed: whole groups"));
  return groups;
}

// [group * each, (group + 1) * each) of every group.
std::vector<int64_t> Spread(const std::vector<int64_t>& groups, int64_t each) {
  std::vector<int64_t> all;
  for (int64_t g : groups) {
    for (int64_t i = 0; i < each; ++i) all.push_back(g * each + i);
  }
  return all;
}

// The numbers of heads, and their length where only the width said it.
absl::Status WriteShape(const Gguf& file, const host::ModelShape& s, int64_t groups,
                        GgufWriter& out) {
  const int64_t shared = s.heads / s.kv_heads;
  SLUICE_RETURN_IF_ERROR(out.Replace("llama.attention.head_count", groups * shared));
  if (file.Has("llama.attention.head_count_kv"))
    SLUICE_RETURN_IF_ERROR(out.Replace("llama.attention.head_count_kv", groups));
  for (const char* key : {"llama.attention.key_length", "llama.attention.value_length"}) {
    if (!file.Has(key))
      SLUICE_RETURN_IF_ERROR(out.SetLike(key, "llama.attention.head_count", s.head_dim));
  }
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<int64_t> GroupsThatStay(int64_t groups, double ratio) {
  const PruneTarget target = {.ratio = ratio};
  const int64_t stay = ratio >= 0 && ratio <= 1 ? pruning::Stay(target, groups) : -1;
  if (stay >= 1 && stay < groups) return stay;
  return absl::InvalidArgumentError(
      absl::StrCat("a share of ", ratio, " of ", groups,
                   " KV heads a layer, each with its query heads; allowed: a share by which at "
                   "least one goes and one stays, 1/",
                   groups, " to below 1"));
}

absl::StatusOr<GgufWriter> WithoutHeads(const Gguf& file, const host::ModelShape& s,
                                        const std::map<std::string, Mask>& masks) {
  const int64_t wide = s.heads / s.kv_heads * s.head_dim;  // the query heads of a KV head
  std::map<std::string, std::vector<int64_t>> stay;
  for (const auto& [name, mask] : masks) {
    SLUICE_ASSIGN_OR_RETURN(stay[name], Groups(name, mask, wide));
  }
  if (stay.empty()) return absl::InvalidArgumentError("no masks of heads");
  const int64_t each = std::ssize(stay.begin()->second);
  GgufWriter out;
  out.CopyValues(file);
  SLUICE_RETURN_IF_ERROR(WriteShape(file, s, each, out));

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
    const auto groups = stay.find(of);
    if (groups == stay.end() || std::ssize(groups->second) != each || each == 0)
      return absl::InvalidArgumentError(
          absl::StrCat(of, " keeps ", groups == stay.end() ? 0 : groups->second.size(),
                       " KV heads, another layer ", each, "; allowed: as many in each, 1 or more"));
    if (queries || keys) {
      AddSlices(t, Spread(groups->second, queries ? wide : s.head_dim), out);
    } else {
      SLUICE_RETURN_IF_ERROR(AddColumns(t, Spread(groups->second, wide), out));
    }
  }
  return out;
}
}  // namespace lab
SLUICE_END_NAMESPACE
