#include "sluice/runtime/lab/prune/prune_neurons.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "sluice/api/check.h"
#include "sluice/runtime/lab/prune/slices.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
int64_t NeuronsThatStay(int64_t neurons, double ratio) {
  constexpr int64_t kBlock = 32;
  const int64_t stay = neurons - static_cast<int64_t>(std::floor(ratio * double(neurons)));
  return std::min(neurons, (stay + kBlock - 1) / kBlock * kBlock);
}

absl::StatusOr<GgufWriter> WithoutNeurons(const Gguf& file,
                                          const std::map<std::string, Mask>& masks) {
  constexpr const char* kDown = ".ffn_down.weight";
  std::map<std::string, std::vector<int64_t>> stay;
  for (const auto& [name, mask] : masks) {
    SLUICE_ASSIGN_OR_RETURN(stay[name], KeptColumns(name, mask));
  }
  if (stay.empty()) return absl::InvalidArgumentError("no masks of neurons");
  const size_t each = stay.begin()->second.size();
  GgufWriter out;
  out.CopyValues(file);
  SLUICE_RETURN_IF_ERROR(out.Replace("llama.feed_forward_length", static_cast<int64_t>(each)));

  for (const std::string& name : file.tensor_names()) {
    const GgufTensor& t = **file.Tensor(name);
    const bool fed =
        absl::EndsWith(name, ".ffn_gate.weight") || absl::EndsWith(name, ".ffn_up.weight");
    if (!fed && !absl::EndsWith(name, kDown)) {
      out.Copy(t);
      continue;
    }
    const std::string down =
        absl::StrReplaceAll(name, {{".ffn_gate.weight", kDown}, {".ffn_up.weight", kDown}});
    const auto columns = stay.find(down);
    if (columns == stay.end() || columns->second.size() != each || each == 0)
      return absl::InvalidArgumentError(
          absl::StrCat(down, " keeps ", columns == stay.end() ? 0 : columns->second.size(),
                       " neurons, another layer ", each, "; allowed: as many in each, 1 or more"));
    if (fed) {
      AddSlices(t, columns->second, out);
    } else {
      SLUICE_RETURN_IF_ERROR(AddColumns(t, columns->second, out));
    }
  }
  return out;
}
}  // namespace lab
SLUICE_END_NAMESPACE
