# llama.cpp of the pin, built from source for a wheel that needs nothing else: EMOE_LLAMA_SOURCE is the folder
# `vendor/llama.cpp` of llama-cpp-python's source distribution.
#
# ggml's CPU backend is built once for each kind of processor (EMOE_CPU_VARIANTS=OFF: once, for the oldest), and the right
# one is loaded when the library is first used (src/llama/cpu.cpp). The libraries have names of our own: a process may hold llama-cpp-python's beside them, and
# the loader takes two libraries of one SONAME for one.
set(BUILD_SHARED_LIBS ON)
set(GGML_NATIVE OFF)
set(GGML_BACKEND_DL ON)
set(GGML_CPU_ALL_VARIANTS ${EMOE_CPU_VARIANTS})
set(GGML_CPU_REPACK OFF) # repacked weights would be copies of the experts: `use_extra_bufts` is false
set(GGML_CCACHE OFF)
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_BUILD_APP OFF)
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT 0c1e57098) # the pin
set(GIT_EXE "" CACHE FILEPATH "none: ggml would ask the repository that it lies in, which is ours" FORCE)

# EXCLUDE_FROM_ALL: nothing of its own is installed, and only what libedgemoe links is built.
add_subdirectory(${EMOE_LLAMA_SOURCE} llama.cpp EXCLUDE_FROM_ALL)

set(emoe_bundled llama ggml ggml-base)
foreach(target ${emoe_bundled})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME edgemoe-${target})
endforeach()
get_property(emoe_backends DIRECTORY ${EMOE_LLAMA_SOURCE}/ggml/src PROPERTY BUILDSYSTEM_TARGETS)
list(FILTER emoe_backends INCLUDE REGEX "^ggml-cpu")
list(FILTER emoe_backends EXCLUDE REGEX "-feats$")
if(APPLE)
  set(EMOE_ORIGIN "@loader_path")
else()
  set(EMOE_ORIGIN "$ORIGIN")
endif()
foreach(target ${emoe_bundled} ${emoe_backends})
  set_property(TARGET ${target} PROPERTY VERSION)
  set_property(TARGET ${target} PROPERTY SOVERSION)
  set_property(TARGET ${target} PROPERTY PUBLIC_HEADER)
  set_target_properties(${target} PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${EMOE_ORIGIN}")
endforeach()

# Links a library of ours with them, and installs all of it into lib/, with the licences that go with it.
function(emoe_bundle target)
  target_compile_definitions(${target} PRIVATE EMOE_BUNDLED)
  target_include_directories(${target} SYSTEM PRIVATE ${EMOE_LLAMA_SOURCE}/include ${EMOE_LLAMA_SOURCE}/ggml/include)
  target_link_libraries(${target} PRIVATE ${emoe_bundled})
  set_target_properties(${target} PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${EMOE_ORIGIN}"
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin) # where llama.cpp puts its own
  install(TARGETS ${emoe_bundled} ${emoe_backends} LIBRARY DESTINATION lib RUNTIME DESTINATION lib)
  install(FILES ${EMOE_LLAMA_SOURCE}/LICENSE DESTINATION lib/licenses RENAME llama.cpp.txt)
  # Two parts of ggml-cpu are others': llamafile's products, whose notice heads its file, and a function in ops.cpp.
  file(STRINGS ${EMOE_LLAMA_SOURCE}/ggml/src/ggml-cpu/llamafile/sgemm.cpp lines REGEX "^//" LIMIT_COUNT 22)
  list(JOIN lines "\n" notice)
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/ggml-cpu.txt
    "${notice}\n\nThe YaRN functions of ops.cpp: MIT, Copyright (c) 2023 Jeffrey Quesnelle and Bowen Peng.\n")
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/ggml-cpu.txt DESTINATION lib/licenses)
  # What the compiler brings for a program to run: a machine without a compiler need not have it.
  set(runtimes)
  if(MINGW)
    set(runtimes libgcc_s_seh-1.dll libstdc++-6.dll libwinpthread-1.dll)
  endif()
  if(GGML_OPENMP_ENABLED AND MINGW)
    list(APPEND runtimes libgomp-1.dll)
  elseif(GGML_OPENMP_ENABLED AND OpenMP_gomp_LIBRARY AND NOT WIN32)
    set(runtimes libgomp.so.1)
  endif()
  foreach(runtime ${runtimes})
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${runtime}
      OUTPUT_VARIABLE file OUTPUT_STRIP_TRAILING_WHITESPACE)
    file(REAL_PATH "${file}" file)
    if(MINGW) # 20 MB of libstdc++'s 24 are for debuggers
      execute_process(COMMAND ${CMAKE_STRIP} --strip-debug -o ${CMAKE_CURRENT_BINARY_DIR}/${runtime} ${file}
        COMMAND_ERROR_IS_FATAL ANY)
      set(file ${CMAKE_CURRENT_BINARY_DIR}/${runtime})
    endif()
    install(FILES ${file} DESTINATION lib RENAME ${runtime})
  endforeach()
  if(runtimes)
    list(JOIN runtimes ", " names)
    set(text "Of GCC ${CMAKE_CXX_COMPILER_VERSION}: ${names}. GPL-3.0 with the GCC Runtime Library Exception 3.1. "
      "Their source is at https://gcc.gnu.org\n")
    if(MINGW)
      list(APPEND text "But libwinpthread-1.dll is mingw-w64's: MIT and BSD. Its source is at https://www.mingw-w64.org\n")
    endif()
    file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/gcc.txt ${text})
    file(GLOB known /usr/share/common-licenses/GPL-3 /usr/share/licenses/libgomp/COPYING3 /usr/share/licenses/libgomp/COPYING.RUNTIME
      /usr/share/licenses/libgcc/COPYING3 /usr/share/licenses/libgcc/COPYING.RUNTIME)
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gcc.txt ${known} DESTINATION lib/licenses)
  endif()
endfunction()
