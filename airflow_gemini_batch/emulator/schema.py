"""
The messages a batch is made of, as tables: message → field in camelCase → type.

Types: ``string``, ``bytes``, ``int32``, ``int64``, ``number``, ``bool``, ``enum``, ``struct`` (any object), ``any``,
``map`` (string to string), ``map:M`` (string to message M), a message name, and ``[]T`` for a list of T. Written by
hand from the REST reference and from what the Python SDK sends.
"""

from __future__ import annotations

import re
from functools import cache

_SOURCE: dict[str, str] = {
    # The create call.
    "CreateGenerate": "batch:GenerateContentBatch",
    "CreateEmbed": "batch:EmbedContentBatch",
    "GenerateContentBatch": (
        "name:string model:string displayName:string inputConfig:GenerateInput priority:int64 "
        "webhookConfig:WebhookConfig output:struct createTime:string endTime:string updateTime:string "
        "batchStats:struct state:enum"
    ),
    "EmbedContentBatch": (
        "name:string model:string displayName:string inputConfig:EmbedInput priority:int64 "
        "webhookConfig:WebhookConfig output:struct createTime:string endTime:string updateTime:string "
        "batchStats:struct state:enum"
    ),
    "WebhookConfig": "uris:[]string userMetadata:struct",
    "GenerateInput": "requests:GenerateRequests fileName:string",
    "GenerateRequests": "requests:[]InlinedGenerate",
    "InlinedGenerate": "request:GenerateContentRequest metadata:struct",
    "EmbedInput": "requests:EmbedRequests fileName:string",
    "EmbedRequests": "requests:[]InlinedEmbed",
    "InlinedEmbed": "request:EmbedContentRequest metadata:struct",
    # Counting tokens.
    "CountTokens": "contents:[]Content generateContentRequest:GenerateContentRequest",
    # A line of an input file.
    "GenerateLine": "key:string request:GenerateContentRequest",
    "EmbedLine": "key:string request:EmbedContentRequest",
    # The requests.
    "GenerateContentRequest": (
        "model:string contents:[]Content systemInstruction:Content tools:[]Tool toolConfig:ToolConfig "
        "safetySettings:[]SafetySetting generationConfig:GenerationConfig cachedContent:string labels:map "
        "serviceTier:enum continuationToken:string store:bool"
    ),
    "EmbedContentRequest": (
        "model:string content:Content taskType:enum title:string outputDimensionality:int32 autoTruncate:bool "
        "mimeType:string documentOcr:bool audioTrackExtraction:bool embedContentConfig:EmbedContentConfig"
    ),
    "EmbedContentConfig": (
        "taskType:enum title:string outputDimensionality:int32 autoTruncate:bool documentOcr:bool "
        "audioTrackExtraction:bool"
    ),
    "GenerationConfig": (
        "candidateCount:int32 stopSequences:[]string maxOutputTokens:int32 temperature:number topP:number "
        "topK:int32 seed:int32 responseMimeType:string responseSchema:Schema responseJsonSchema:any "
        "_responseJsonSchema:any presencePenalty:number frequencyPenalty:number responseLogprobs:bool "
        "logprobs:int32 enableEnhancedCivicAnswers:bool responseModalities:[]enum speechConfig:SpeechConfig "
        "thinkingConfig:ThinkingConfig imageConfig:ImageConfig mediaResolution:enum "
        "audioTranscriptionConfig:AudioTranscriptionConfig translationConfig:TranslationConfig "
        "enableAffectiveDialog:bool responseFormat:any"
    ),
    "ThinkingConfig": "includeThoughts:bool thinkingBudget:int32 thinkingLevel:enum",
    "ImageConfig": "aspectRatio:string imageSize:string",
    "TranslationConfig": "echoTargetLanguage:bool targetLanguageCode:string",
    "AudioTranscriptionConfig": (
        "languageCodes:[]string languageAuto:struct languageHints:LanguageHints customVocabulary:[]string "
        "adaptationPhrases:[]string wordTimestamp:bool diarization:bool mode:enum sourceText:string"
    ),
    "LanguageHints": "languageCodes:[]string",
    "SpeechConfig": "voiceConfig:VoiceConfig languageCode:string multiSpeakerVoiceConfig:MultiSpeakerVoiceConfig",
    "VoiceConfig": "prebuiltVoiceConfig:PrebuiltVoiceConfig replicatedVoiceConfig:ReplicatedVoiceConfig voice:string",
    "PrebuiltVoiceConfig": "voiceName:string",
    "ReplicatedVoiceConfig": "mimeType:string voiceSampleAudio:bytes consentAudio:bytes voiceConsentSignature:struct",
    "MultiSpeakerVoiceConfig": "speakerVoiceConfigs:[]SpeakerVoiceConfig",
    "SpeakerVoiceConfig": "speaker:string voiceConfig:VoiceConfig",
    "SafetySetting": "category:enum threshold:enum",
    # Content.
    "Content": "role:string parts:[]Part",
    "Part": (
        "text:string inlineData:Blob fileData:FileData functionCall:FunctionCall "
        "functionResponse:FunctionResponse executableCode:ExecutableCode "
        "codeExecutionResult:CodeExecutionResult toolCall:ToolCall toolResponse:ToolResponse thought:bool "
        "thoughtSignature:bytes videoMetadata:VideoMetadata mediaResolution:MediaResolution "
        "partMetadata:struct audioTranscription:struct mediaProcessing:any speechMetadata:SpeechMetadata "
        "documentMetadata:DocumentMetadata spreadsheetMetadata:SpreadsheetMetadata "
        "audioMetadata:AudioMetadata"
    ),
    "Blob": "mimeType:string data:bytes displayName:string",
    "FileData": "mimeType:string fileUri:string displayName:string",
    "FunctionCall": "id:string name:string args:struct",
    "FunctionResponse": (
        "id:string name:string response:struct parts:[]FunctionResponsePart willContinue:bool scheduling:enum"
    ),
    "FunctionResponsePart": (
        "inlineData:Blob fileData:FileData mediaProcessing:any mediaResolution:MediaResolution "
        "videoMetadata:VideoMetadata documentMetadata:DocumentMetadata "
        "spreadsheetMetadata:SpreadsheetMetadata audioMetadata:AudioMetadata"
    ),
    "ExecutableCode": "id:string language:enum code:string",
    "CodeExecutionResult": "id:string outcome:enum output:string",
    "ToolCall": "id:string toolType:enum args:struct",
    "ToolResponse": "id:string toolType:enum response:struct",
    "VideoMetadata": "startOffset:string endOffset:string fps:number contentLayers:[]enum",
    "MediaResolution": "level:enum numTokens:int32",
    "SpeechMetadata": "speaker:string style:string",
    "DocumentMetadata": "startPage:int32 endPage:int32 contentLayers:[]enum",
    "SpreadsheetMetadata": "visibleCells:string sheetIndex:int32 contentLayers:[]enum",
    "AudioMetadata": "startOffset:string endOffset:string",
    # Tools.
    "Tool": (
        "functionDeclarations:[]FunctionDeclaration googleSearch:GoogleSearch "
        "googleSearchRetrieval:GoogleSearchRetrieval codeExecution:Empty urlContext:Empty "
        "googleMaps:GoogleMaps fileSearch:FileSearch computerUse:ComputerUse mcpServers:[]McpServer"
    ),
    "Empty": "",
    "FunctionDeclaration": (
        "name:string description:string parameters:Schema parametersJsonSchema:any response:Schema "
        "responseJsonSchema:any behavior:enum"
    ),
    "GoogleSearch": "timeRangeFilter:Interval searchTypes:SearchTypes",
    "SearchTypes": "webSearch:Empty imageSearch:Empty",
    "Interval": "startTime:string endTime:string",
    "GoogleSearchRetrieval": "dynamicRetrievalConfig:DynamicRetrievalConfig",
    "DynamicRetrievalConfig": "mode:enum dynamicThreshold:number",
    "GoogleMaps": "enableWidget:bool authConfig:AuthConfig",
    "AuthConfig": "apiKey:string",
    "FileSearch": "fileSearchStoreNames:[]string topK:int32 metadataFilter:string",
    "ComputerUse": (
        "environment:enum excludedPredefinedFunctions:[]string enablePromptInjectionDetection:bool "
        "disabledSafetyPolicies:[]enum"
    ),
    "McpServer": "name:string streamableHttpTransport:StreamableHttpTransport",
    "StreamableHttpTransport": "url:string headers:map timeout:string sseReadTimeout:string terminateOnClose:bool",
    "ToolConfig": (
        "functionCallingConfig:FunctionCallingConfig retrievalConfig:RetrievalConfig "
        "includeServerSideToolInvocations:bool"
    ),
    "FunctionCallingConfig": "mode:enum allowedFunctionNames:[]string",
    "RetrievalConfig": "latLng:LatLng languageCode:string",
    "LatLng": "latitude:number longitude:number",
    # The OpenAPI subset of responseSchema. It has no $ref and no additionalProperties.
    "Schema": (
        "type:enum format:string title:string description:string nullable:bool enum:[]string maxItems:int64 "
        "minItems:int64 properties:map:Schema required:[]string minProperties:int64 maxProperties:int64 "
        "minLength:int64 maxLength:int64 pattern:string example:any anyOf:[]Schema propertyOrdering:[]string "
        "default:any items:Schema minimum:number maximum:number"
    ),
}
ONEOFS = {
    "Part": frozenset({
        "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult",
        "toolCall", "toolResponse",
    })
}  # fmt: skip
"""Fields of which a message has one; in a part they are its ``data``."""
FLAT_GENERATION_FIELDS = ("temperature", "topP", "topK", "maxOutputTokens", "candidateCount", "stopSequences", "seed")


@cache
def snake(name: str) -> str:
    """``displayName`` → ``display_name``."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: "_" + m.group(1).lower(), name)


def _fields(source: str) -> dict[str, tuple[str, str]]:
    """Either spelling of each field → its camelCase name and type."""
    table: dict[str, tuple[str, str]] = {}
    for item in source.split():
        name, kind = item.split(":", 1)
        table[name] = table[snake(name)] = (name, kind)
    return table


MESSAGES: dict[str, dict[str, tuple[str, str]]] = {name: _fields(source) for name, source in _SOURCE.items()}
