# sluice_add_plugin(<name> <sources>...): a plug-in <name>.so of api/plugin.h; exports its entry point and nothing else.
set(SLUICE_PLUGIN_MAP ${CMAKE_CURRENT_LIST_DIR}/plugin.map CACHE INTERNAL "")
function(sluice_add_plugin name)
  add_library(${name} MODULE ${ARGN})
  target_link_libraries(${name} PRIVATE Sluice::headers)
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_link_options(${name} PRIVATE -Wl,--version-script=${SLUICE_PLUGIN_MAP} -Wl,--no-undefined)
  set_target_properties(${name} PROPERTIES PREFIX "" LINK_DEPENDS ${SLUICE_PLUGIN_MAP} CXX_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
endfunction()
