#ifndef SLUICE_RUNTIME_LAB_EVALUATE_PLANTED_H_
#define SLUICE_RUNTIME_LAB_EVALUATE_PLANTED_H_
// Attention over made keys whose structure is known: what a method finds of it, and how its time
// and memory grow with the cache.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/attend/metrics.h"
#include "sluice/runtime/session/attention_session.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
enum class PlantedKind : uint8_t { kNeedles, kSinkRecent, kTopics, kStripes };
inline constexpr const char* kPlantedKinds[] = {"needles", "sink and recency", "drifting topics",
                                                "stripes"};

// Keys and values of one layer [keys, kv_heads, dim], and the queries of the last `queries`
// positions [queries, heads, dim], already with their positions.
struct PlantedData {
  int64_t keys = 0, queries = 0, heads = 8, kv_heads = 2, dim = 64;
  std::vector<float> q, k, v;
  AttentionInputs Inputs(int64_t first, int64_t count) const;  // of queries [first, first + count)
};
// Noise everywhere, and over it:
//   needles           a direction of its own in 8 keys at random positions; every query follows one
//   sink and recency  the first four keys, and those close before the query, drawn to it
//   topics            spans of 200 to 800 keys share a direction; queries follow their own and one
//                     earlier
//   stripes           one key in 256, scattered, that all queries look at
// Deterministic from the seed.
PlantedData MakePlanted(PlantedKind kind, int64_t keys, int64_t queries, uint64_t seed);

struct PlantedResult {
  PlanQuality quality;  // where it was asked for
  double plan_s = 0, attend_s = 0;
  int64_t state_bytes = 0, workspace_bytes = 0;
  double density = 0;
};
struct PlantedOptions {
  int64_t chunk = 512;         // queries of a pass
  int64_t quality_stride = 0;  // every so many queries; 0: none
  int threads = 0;
};
// A policy over the data's queries, a chunk a pass.
absl::StatusOr<PlantedResult> RunPlanted(const PlantedData& data, const std::string& policy,
                                         const PlantedOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_EVALUATE_PLANTED_H_
