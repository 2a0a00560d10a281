// Names of onnxruntime-genai's Java interface that docs/android.md uses: nothing runs.
package ai.onnxruntime.genai;

public class Tokenizer implements AutoCloseable {
  public Tokenizer(Model model) throws GenAIException {}

  public Sequences encode(String string) throws GenAIException {
    return null;
  }

  public String applyChatTemplate(
      String templateStr, String messages, String tools, boolean addGenerationPrompt)
      throws GenAIException {
    return null;
  }

  public TokenizerStream createStream() throws GenAIException {
    return null;
  }

  @Override
  public void close() {}
}
