// Names of onnxruntime-genai's Java interface that docs/android.md uses: nothing runs.
package ai.onnxruntime.genai;

public final class Config implements AutoCloseable {
  public Config(String modelPath) throws GenAIException {}

  public void overlay(String json) {}

  @Override
  public void close() {}
}
