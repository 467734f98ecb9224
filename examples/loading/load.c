// Runs the converted demo network from C: one image of ones in, ten logits out, each exact to the bit (%a).
//
//   cc load.c -lonnxruntime -o load && ./load demo.compiled.onnx [libbinarize_onnx.so]
//
// Without the library the same file runs by its ONNX functions: the same bits, slowly.
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIXELS = 28 * 28, CLASSES = 10 };

static const OrtApi* ort;

static void check(OrtStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "error: %s\n", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  exit(1);
}

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s MODEL [LIBRARY]\n", argv[0]);
    return 2;
  }
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == NULL) {
    fprintf(stderr, "error: this onnxruntime is older than the header\n");
    return 1;
  }

  OrtEnv* env;
  OrtSessionOptions* options;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "load", &env));
  check(ort->CreateSessionOptions(&options));
  if (argc > 2) check(ort->RegisterCustomOpsLibrary_V2(options, argv[2]));  // the one line that makes it fast
  OrtSession* session;
  check(ort->CreateSession(env, argv[1], options, &session));

  float image[PIXELS];
  for (int i = 0; i < PIXELS; i++) image[i] = 1;
  const int64_t shape[] = {1, 1, 28, 28};
  OrtMemoryInfo* cpu;
  OrtValue* input;
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu));
  check(ort->CreateTensorWithDataAsOrtValue(cpu, image, sizeof image, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                            &input));
  const char* input_names[] = {"image"};
  const char* output_names[] = {"logits"};
  const OrtValue* inputs[] = {input};
  OrtValue* output = NULL;
  check(ort->Run(session, NULL, input_names, inputs, 1, output_names, 1, &output));
  float* logits;
  check(ort->GetTensorMutableData(output, (void**)&logits));
  for (int i = 0; i < CLASSES; i++) printf("%a\n", logits[i]);

  ort->ReleaseValue(output);
  ort->ReleaseValue(input);
  ort->ReleaseMemoryInfo(cpu);
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(env);
  return 0;
}
