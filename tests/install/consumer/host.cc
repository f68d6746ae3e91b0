// The reference host out of the installed libraries: it links, and says what is wrong with a path.
#include "sluice/runtime/host/policy.h"

int main() {
  const auto model = sluice::host::LoadModel("/nothing/of/that/name.gguf");
  return model.ok() ? 1 : 0;
}
