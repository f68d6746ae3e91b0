// Routers, executor, kernels and loader as libraries of the host's own build.
#include <cstdio>
#include <string>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dynload/plugin_library.h"

int main(int argc, char** argv) {
  if (!sluice::BuiltinRouters().attention.Create("mean_pool:k=4").ok()) return 1;
  const auto attend = sluice::Attend::Create(
      {.max_queries = 4, .max_kv = 64, .heads = 2, .kv_heads = 1, .head_dim = 8, .value_dim = 8});
  if (!attend.ok()) return 2;
  if (sluice::MakeTbbExecutor(2)->num_workers() != 2) return 3;
  sluice::Registry registry;
  for (int i = 1; i < argc; ++i) {
    const auto info = sluice::LoadPlugin(argv[i], registry);
    if (!info.ok()) {
      std::printf("%s\n", std::string(info.status().message()).c_str());
      return 4;
    }
  }
  return argc == 1 || registry.attention.Create("strided:stride=3").ok() ? 0 : 5;
}
